-- Batches as they are told: one, or a page of them by falling id. Keys: batches, inner:<batch>, batch:<id>, job:<id>.

return run(function()
  local one, most, cursor, outer = optional(), number(), optional(), optional()
  local ids = one and {one} or call('ZREVRANGEBYLEX', key(outer and 'inner:' .. outer or 'batches'),
    cursor and '(' .. cursor or '+', '-', 'LIMIT', 0, most)
  local rows = {}
  for _, id in ipairs(ids) do
    local b = call('HMGET', batch_key(id), unpack(BATCH_FIELDS))
    local top = call('HMGET', job_key(id), 'kind', 'queue', 'state', 'created', 'finished', 'batch')
    if top[1] and call('EXISTS', batch_key(id)) == 1 then rows[#rows + 1] = {id, top, b} end
  end
  return rows
end)
