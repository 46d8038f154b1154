-- Reopen the head of a settled batch; slices then requeue its failed items. 0 if there is none.
-- Keys: batch:<id>, failed:<batch>, job:<id>, and those of slices.

local function any_failed(batch, class)
  local start = '{"type":' .. class .. ','
  local from = 0
  while true do
    local ids = call('ZRANGE', key('failed:' .. batch), from, from + LOOKED_AT - 1)
    for _, id in ipairs(ids) do
      local err = call('HGET', job_key(id), 'error')
      if err and string.sub(err, 1, #start) == start then return true end
    end
    if #ids < LOOKED_AT then return false end
    from = from + LOOKED_AT
  end
end

return run(function()
  local batch, class, most = arg(), optional(), optional()
  local b = look_at_batch(batch)
  if not b then refuse('missing', '', batch) end
  local top = look(batch)
  if b.draining ~= 0 or (b.cancel > 0 and top.state == RUNNING) then
    refuse('state', 'a cancel, retry, pause or delete of this batch is still under way')
  end
  if b.sealed == 0 then
    refuse('state', 'this batch was never completely filled; start it anew')
  end
  if b.failed == 0 or most == '0' then return 0 end
  if top.state ~= RUNNING then
    if class and not any_failed(batch, class) then return 0 end
    check_reopen(top, b)
    reopen_head(top, b)
  end
  begin_slices(batch, RETRYING)
  call('HDEL', batch_key(batch), 'retry_type', 'retry_left')
  if class then call('HSET', batch_key(batch), 'retry_type', class) end
  if most then call('HSET', batch_key(batch), 'retry_left', most) end
  return 1
end)
