-- Reopen the head of a settled batch; slices then requeue its failed items. Returns whether it
-- did, and if not, where to go on looking for an item to requeue, or false if there is none.
-- Keys: batch:<id>, failed:<batch>, job:<id>, and those of slices.

-- Whether any of a stretch of its failed items has an error of that class; if not, where to go on,
-- or nil at the end.
local function any_failed(batch, class, from)
  local start = class and '{"type":' .. class .. ','
  local ids = call('ZRANGE', key('failed:' .. batch), from, from + LOOKED_AT - 1)
  for _, id in ipairs(ids) do
    local h = call('HMGET', job_key(id), 'error', 'role')
    local fits = not start or (h[1] and string.sub(h[1], 1, #start) == start)
    if fits and num(h[2]) == ITEM then return true end
  end
  return false, #ids == LOOKED_AT and from + LOOKED_AT or nil
end

return run(function()
  local batch, class, most, from = arg(), optional(), optional(), number()
  local b = look_at_batch(batch)
  if not b then refuse('missing', '', batch) end
  local top = look(batch)
  if b.draining ~= 0 or (b.cancel > 0 and top.state == RUNNING) then
    refuse('state', 'a cancel, retry, pause or delete of this batch is still under way')
  end
  if b.sealed == 0 then
    refuse('state', 'this batch was never completely filled; start it anew')
  end
  if b.failed == 0 or most == '0' then return {0, false} end
  if top.state ~= RUNNING then
    if class or call('EXISTS', key('inner:' .. batch)) == 1 then
      local found, following = any_failed(batch, class, from)
      if not found then return {0, following or false} end
    end
    check_reopen(top, b)
    reopen_head(top, b)
  end
  begin_slices(batch, RETRYING)
  call('HDEL', batch_key(batch), 'retry_type', 'retry_left')
  if class then call('HSET', batch_key(batch), 'retry_type', class) end
  if most then call('HSET', batch_key(batch), 'retry_left', most) end
  return {1, false}
end)
