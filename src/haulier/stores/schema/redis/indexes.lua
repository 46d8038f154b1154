-- Indexes of jobs by number, read a stretch at a time; those of all jobs are two: top and below.
-- Keys: top, below, dead, items:<batch>, failed:<batch>, active:<batch>, running:<worker>.

local function stretch(index, cursor, oldest_first, most)
  if oldest_first then
    return call('ZRANGEBYSCORE', index, cursor and '(' .. cursor or '-inf', '+inf', 'WITHSCORES',
      'LIMIT', 0, most)
  end
  return call('ZREVRANGEBYSCORE', index, cursor and '(' .. cursor or '+inf', '-inf', 'WITHSCORES',
    'LIMIT', 0, most)
end

-- Two stretches that were asked for at the same length, as one of that length; and whether there may
-- be more.
local function merged(one, two, oldest_first, most)
  if #two == 0 then return one, #one == 2 * most end
  local found, i, j = {}, 1, 1
  while #found < 2 * most and (i < #one or j < #two) do
    local a, b = tonumber(one[i + 1]), tonumber(two[j + 1])
    local first = not b or (a and (a < b) == oldest_first)
    local from, at = first and one or two, first and i or j
    found[#found + 1], found[#found + 2] = from[at], from[at + 1]
    if first then i = i + 2 else j = j + 2 end
  end
  return found, i < #one or j < #two or #one == 2 * most or #two == 2 * most
end

-- All jobs, the oldest first.
local function stretch_of_all(after, most)
  return merged(stretch(key('top'), after, true, most), stretch(key('below'), after, true, most),
    true, most)
end
