-- A page of all jobs in their order, each with the errors of its attempts, whether it stands in its
-- line, its steps and its log lines; where to go on, or false at the end.
-- Keys: top, below, job:<id>, payload:<id>, errors:<id>, steps:<id>, lines:<id>, ready:<queue>:<kind>,
-- and those of lanes.

local function in_lane(row, place)
  return limits.known() and (lanes.stand_of(row[F_QUEUE], row[F_KIND], num(row[F_ROLE]), row[F_BATCH], row[F_KEY], place))
end

local function is_ready(row, id)
  local place = place_of(tonumber(row[F_SEQ]), id)
  return call('ZSCORE', ready_key(row[F_QUEUE], row[F_KIND]), place) or in_lane(row, place)
end

local function size_of(values)
  local size = 0
  for i = 2, #values, 2 do size = size + #values[i] end
  return size
end

return run(function()
  local after, most, most_bytes = arg(), number(), number()
  local ids = stretch_of_all(after, most + 1)
  local rows, size = {}, 0
  for i = 1, #ids, 2 do
    if #rows == most or size > most_bytes then return {rows, ids[i - 1]} end
    local id = ids[i]
    local row = row_of(id, job_key(id))
    size = size + #row[F_PAYLOAD] + (row[F_RESULT] and #row[F_RESULT] or 0)
    row[#row + 1] = id
    row[#row + 1] = call('HVALS', key('errors:' .. id))
    row[#row + 1] = row[F_STATE] == '0' and is_ready(row, id) and 1 or 0
    for _, family in ipairs({'steps:', 'lines:'}) do
      local kept = call('HGETALL', key(family .. id))
      size = size + size_of(kept)
      row[#row + 1] = kept
    end
    local edges, waits_for = {}, call('HGETALL', key('edges:' .. id))
    for j = 1, #waits_for, 2 do
      local e = call('HMGET', key('end:' .. waits_for[j]), 'state', 'result', 'error')
      size = size + (e[2] and #e[2] or 0)
      edges[#edges + 1] = {waits_for[j], waits_for[j + 1], e[1], e[2], e[3], false}
    end
    row[#row + 1] = edges
    row[#row + 1] = call('HGET', job_key(id), 'children')
    rows[#rows + 1] = row
  end
  return {rows, false}
end)
