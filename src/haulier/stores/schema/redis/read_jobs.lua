-- A page of all jobs in their order, each with the errors of its attempts; where to go on, or false
-- at the end. Keys: jobs, job:<id>, errors:<id>.

return run(function()
  local after, most, most_bytes = arg(), number(), number()
  local ids = call('ZRANGEBYSCORE', key('jobs'), '(' .. after, '+inf', 'WITHSCORES', 'LIMIT', 0, most + 1)
  local rows, size = {}, 0
  for i = 1, #ids, 2 do
    if #rows == most or size > most_bytes then return {rows, ids[i - 1]} end
    local id = ids[i]
    local row = call('HMGET', job_key(id), unpack(JOB_FIELDS))
    size = size + #row[F_PAYLOAD] + (row[F_RESULT] and #row[F_RESULT] or 0)
    row[#row + 1] = id
    row[#row + 1] = call('HVALS', key('errors:' .. id))
    rows[#rows + 1] = row
  end
  return {rows, false}
end)
