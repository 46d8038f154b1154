-- A page of all jobs in their order, each with the errors of its attempts and whether it stands in
-- its line; where to go on, or false at the end.
-- Keys: top, below, job:<id>, payload:<id>, errors:<id>, ready:<queue>:<kind>.

local function is_ready(row, id)
  return call('ZSCORE', ready_key(row[F_QUEUE], row[F_KIND]), place_of(tonumber(row[F_SEQ]), id))
end

return run(function()
  local after, most, most_bytes = arg(), number(), number()
  local function stretch(index)
    return call('ZRANGEBYSCORE', key(index), '(' .. after, '+inf', 'WITHSCORES', 'LIMIT', 0, most + 1)
  end
  local top, below = stretch('top'), stretch('below')
  local rows, size, i, j, last = {}, 0, 1, 1, after
  while top[i] or below[j] do
    if #rows == most or size > most_bytes then return {rows, last} end
    local a, b = tonumber(top[i + 1]), tonumber(below[j + 1])
    local id
    if not b or (a and a < b) then
      id, last, i = top[i], top[i + 1], i + 2
    else
      id, last, j = below[j], below[j + 1], j + 2
    end
    local row = row_of(id, job_key(id))
    size = size + #row[F_PAYLOAD] + (row[F_RESULT] and #row[F_RESULT] or 0)
    row[#row + 1] = id
    row[#row + 1] = call('HVALS', key('errors:' .. id))
    row[#row + 1] = row[F_STATE] == '0' and is_ready(row, id) and 1 or 0
    rows[#rows + 1] = row
  end
  return {rows, false}
end)
