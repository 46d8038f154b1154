-- Batches within batches: what is done to one goes on through those whose heads are its items. A batch
-- says `within` which one it lies, and how many within it have not settled (`unsettled`). Its `paused` is
-- 1 by itself, 2 by the batch around it, 3 both.
-- Keys: batch:<id>, inner:<batch>, nested, draining, gated, and those of settling.

local function check_depth(outer)
  local at = outer
  for _ = 1, DEEPEST do
    at = within(at)
    if not at then return end
  end
  refuse('state', 'batch ' .. outer .. ' lies as deep as can be: ' .. DEEPEST
    .. ' batches around one are the most')
end

-- A new batch lies within another one: paused like it, with leases above all used there.
local function put_within(batch, outer)
  local h = call('HMGET', batch_key(outer), 'paused', 'leases')
  call('HSET', batch_key(batch), 'within', outer)
  call('HINCRBY', batch_key(outer), 'unsettled', 1)
  if num(h[2]) > 0 then call('HSET', batch_key(batch), 'leases', h[2]) end
  if num(h[1]) > 0 then
    call('HSET', batch_key(batch), 'paused', 2)
    set_gated(batch, true)
  end
  call('ZADD', key('inner:' .. outer), 0, batch)
  call('ZADD', key('nested'), 0, batch)
end

-- The batch itself, or one within it that has none within.
local function innermost(batch)
  local inner = call('ZRANGE', key('inner:' .. batch), 0, 0)[1]
  while inner do
    batch = inner
    inner = call('ZRANGE', key('inner:' .. batch), 0, 0)[1]
  end
  return batch
end

local function forget_batch(batch)
  local outer = within(batch)
  if outer then
    call('ZREM', key('inner:' .. outer), batch)
    call('ZREM', key('nested'), batch)
  else
    call('ZREM', key('batches'), batch)
  end
  call('DEL', batch_key(batch), key('parked:' .. batch), key('failed:' .. batch))
  call('SREM', key('draining'), batch)
  set_gated(batch, false)
end

-- Pause a batch that was not, or the other way about, and begin what that brings along; whether slices
-- are to follow. In the midst of a retry the pause follows that.
local function set_paused(b, paused)
  call('HSET', batch_key(b.id), 'paused', paused)
  call('HDEL', batch_key(b.id), 'excess', 'short')
  set_gated(b.id, paused > 0 or b.limited)
  local d = b.draining
  if d ~= 0 and d ~= PAUSING and d ~= RESUMING and d ~= LIMITING then return end
  if paused > 0 then
    begin_slices(b.id, PAUSING)
  elseif not b.limited then
    begin_slices(b.id, RESUMING)
  elseif d == PAUSING or b.unsettled > 0 then
    -- It got its limits while it was being paused: what still stands in the line was not let in. Or
    -- those within it are to be resumed.
    begin_slices(b.id, LIMITING)
  else
    end_slices(b.id)
  end
end

local function has_own_pause(paused) return paused % 2 == 1 end

-- Do to a batch what was done to the one around it.
local function adapt(b, cancel, pause)
  if b.owed == 0 or b.cancel > 0 then return end
  if cancel then
    begin_cancel(b.id, BY_REQUEST)
    return
  end
  if pause == (b.paused >= 2) then return end
  if has_own_pause(b.paused) then
    call('HSET', batch_key(b.id), 'paused', pause and 3 or 1)
    return
  end
  set_paused(b, pause and 2 or 0)
  local top = look(b.id)
  moved(pause and 'pause' or 'resume', top, top.state, top.state)
  write_ledger()
  let_in(b.id)
end

-- One step of bringing what lies within a batch into line with it; whether there is more. The work of
-- each is done here, so that whoever drains the outer one does it all.
local function go_on_within(batch, drain)
  local h = call('HMGET', batch_key(batch), 'unsettled', 'inner_at', 'cancel', 'paused')
  if num(h[1]) == 0 then return false end
  local ids = call('ZRANGEBYLEX', key('inner:' .. batch), h[2] and '(' .. h[2] or '-', '+', 'LIMIT', 0, 50)
  for _, id in ipairs(ids) do
    local b = look_at_batch(id)
    adapt(b, num(h[3]) > 0, num(h[4]) > 0)
    local under_way = num(call('HGET', batch_key(id), 'draining'))
    if under_way ~= 0 then
      if drain(id) then return true end
    end
    call('HSET', batch_key(batch), 'inner_at', id)
    if under_way ~= 0 then return true end
  end
  return #ids == 50
end
