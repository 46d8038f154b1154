-- One stretch of an index of jobs, or of two merged into one, filtered: the rows that fit, where to go
-- on, and whether there is anything beyond.
-- Keys: those of indexes and of lanes, job:<id>, payload:<id>.

local FILTERED = {'state', 'kind', 'queue', 'role', 'key', 'worker', 'batch', 'error'}

local function is_parked(row, id)
  if not limits.known() then return false end
  local _, closed = lanes.stand_of(row[F_QUEUE], row[F_KIND], num(row[F_ROLE]), row[F_BATCH], row[F_KEY],
    place_of(tonumber(row[F_SEQ]), id))
  return closed
end

return run(function()
  local index, second, cursor = arg(), optional(), optional()
  local oldest_first, most, payloads = number() == 1, number(), number()
  local states, kind, queue, roles = optional(), optional(), optional(), optional()
  local of_key, worker, batch, err = optional(), optional(), optional(), optional()
  local ids, more = merged(stretch(key(index), cursor, oldest_first, FOUND_AT_ONCE),
    second and stretch(key(second), cursor, oldest_first, FOUND_AT_ONCE) or {}, oldest_first,
    FOUND_AT_ONCE)
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
      local row = row_of(id, job_key(id), payloads == 0)
      if h[1] == '0' and not row[F_GATE] and is_parked(row, id) then row[F_GATE] = PARKED end
      row[#row + 1] = id
      rows[#rows + 1] = row
    end
    following = ids[i + 1]
    if #rows >= most then return {rows, following, 1} end
  end
  return {rows, following, more and 1 or 0}
end)
