-- One stretch of an index of jobs, filtered: the rows that fit, where to go on, and whether there
-- is anything beyond. Keys: jobs, top, dead, items:<batch>, failed:<batch>, running:<worker>, job:<id>.

local FILTERED = {'state', 'kind', 'queue', 'role', 'key', 'worker', 'batch', 'error'}

return run(function()
  local index, cursor, oldest_first, most, payloads = key(arg()), optional(), number(), number(), number()
  local states, kind, queue, roles = optional(), optional(), optional(), optional()
  local of_key, worker, batch, err = optional(), optional(), optional(), optional()
  local ids
  if oldest_first == 1 then
    ids = call('ZRANGEBYSCORE', index, cursor and '(' .. cursor or '-inf', '+inf', 'WITHSCORES', 'LIMIT', 0, FOUND_AT_ONCE)
  else
    ids = call('ZREVRANGEBYSCORE', index, cursor and '(' .. cursor or '+inf', '-inf', 'WITHSCORES', 'LIMIT', 0, FOUND_AT_ONCE)
  end
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
      local row = call('HMGET', job_key(id), unpack(JOB_FIELDS))
      if payloads == 0 then row[F_PAYLOAD] = 'null' end
      row[#row + 1] = id
      rows[#rows + 1] = row
    end
    following = ids[i + 1]
    if #rows >= most then return {rows, following, 1} end
  end
  return {rows, following, #ids == 2 * FOUND_AT_ONCE and 1 or 0}
end)
