-- One stretch of an index of jobs, or of two merged into one, filtered: the rows that fit, where to go
-- on, and whether there is anything beyond.
-- Keys: top, below, dead, items:<batch>, failed:<batch>, active:<batch>, running:<worker>, job:<id>,
-- payload:<id>.

local FILTERED = {'state', 'kind', 'queue', 'role', 'key', 'worker', 'batch', 'error'}

local function stretch(index, cursor, oldest_first)
  if oldest_first then
    return call('ZRANGEBYSCORE', index, cursor and '(' .. cursor or '-inf', '+inf', 'WITHSCORES',
      'LIMIT', 0, FOUND_AT_ONCE)
  end
  return call('ZREVRANGEBYSCORE', index, cursor and '(' .. cursor or '+inf', '-inf', 'WITHSCORES',
    'LIMIT', 0, FOUND_AT_ONCE)
end

-- Two stretches of the same length as one; what lies beyond the shorter one's end is left out.
local function merged(one, two, oldest_first)
  if #two == 0 then return one, #one == 2 * FOUND_AT_ONCE end
  local found, i, j = {}, 1, 1
  while #found < 2 * FOUND_AT_ONCE and (i < #one or j < #two) do
    local a, b = tonumber(one[i + 1]), tonumber(two[j + 1])
    local first = not b or (a and (a < b) == oldest_first)
    local from, at = first and one or two, first and i or j
    found[#found + 1], found[#found + 2] = from[at], from[at + 1]
    if first then i = i + 2 else j = j + 2 end
  end
  return found, i < #one or j < #two or #one == 2 * FOUND_AT_ONCE or #two == 2 * FOUND_AT_ONCE
end

return run(function()
  local index, second, cursor = arg(), optional(), optional()
  local oldest_first, most, payloads = number() == 1, number(), number()
  local states, kind, queue, roles = optional(), optional(), optional(), optional()
  local of_key, worker, batch, err = optional(), optional(), optional(), optional()
  local ids, more = merged(stretch(key(index), cursor, oldest_first),
    second and stretch(key(second), cursor, oldest_first) or {}, oldest_first)
  local rows, following = {}, false
  for i = 1, #ids, 2 do
    local id = ids[i]
    local h = call('HMGET', job_key(id), unpack(FILTERED))
    if (not states or string.find(states, h[1], 1, true))
      and (not kind or h[2] == kind) and (not queue or h[3] == queue)
      and (not roles or string.find(roles, h[4] or '0', 1, true))
      and (not of_key or h[5] == string.sub(of_key, 2))
      and (not worker or (h[1] == '1' and h[6] == worker))
      and (not batch or h[7] == batch)
      and (not err or string.sub(h[8] or '', 1, #err) == err) then
      local row
      if payloads == 1 then
        row = row_of(id, job_key(id))
      else
        row = call('HMGET', job_key(id), unpack(JOB_FIELDS))
        row[F_PAYLOAD] = 'null'
      end
      row[#row + 1] = id
      rows[#rows + 1] = row
    end
    following = ids[i + 1]
    if #rows >= most then return {rows, following, 1} end
  end
  return {rows, following, more and 1 or 0}
end)
