-- Change limits of a batch while it runs; 1 if slices are to follow. `excess`: so many items were
-- let in, and are more than may be now. All are taken back, by claims that meet them in the line or by
-- slices, and the first ones let in again. `short`: nothing else is to be looked for.
-- Keys: batch:<id>, gated, draining, job:<id>, and those of slices.

local NAMES = {'concurrency', 'batch_size', 'max_failures'}

local function told_change(old, new)
  local parts = {}
  for _, name in ipairs(NAMES) do
    if old[name] ~= new[name] then
      parts[#parts + 1] = name .. ' ' .. (old[name] or 'none') .. ' -> ' .. (new[name] or 'none')
    end
  end
  return table.concat(parts, ', ')
end

-- The limits as they are, and as they will be.
local function read_limits(batch)
  local h, old, new = call('HMGET', batch_key(batch), unpack(NAMES)), {}, {}
  for i, name in ipairs(NAMES) do
    old[name] = h[i] or nil
    new[name] = old[name]
  end
  for _ = 1, number() do
    local name = arg()
    new[name] = optional()
  end
  return old, new
end

local function write_limits(batch, new)
  for _, name in ipairs(NAMES) do
    if new[name] then
      call('HSET', batch_key(batch), name, new[name])
    else
      call('HDEL', batch_key(batch), name)
    end
  end
end

-- What is to be done to the items of a batch that is not paused.
local function under_way(b, limited)
  if limited == b.limited then return b.draining end
  return limited and LIMITING or RESUMING
end

return run(function()
  though_full()
  local batch, by = arg(), arg()
  local old, new = read_limits(batch)
  local b = look_at_batch(batch)
  if not b then refuse('missing', '', batch) end
  local top = look(batch)
  if b.owed == 1 and b.cancel > 0 then
    refuse('state', 'this batch has ended, or is being cancelled')
  end
  if b.draining ~= 0 and b.draining ~= PAUSING and b.draining ~= RESUMING and b.draining ~= LIMITING then
    refuse('state', 'a retry or delete of this batch is still under way')
  end
  local change = told_change(old, new)
  if change == '' then return 0 end
  write_limits(batch, new)
  local limited = (new.concurrency or new.batch_size) and true or false
  set_gated(batch, b.owed == 1 and (b.paused > 0 or limited))
  moved('alter', top, top.state, top.state, nil, cjson.encode({by, change}))
  write_ledger()
  if b.owed == 0 then return 0 end
  if new.max_failures and b.failed > tonumber(new.max_failures) then
    begin_cancel(batch, CUT_SHORT)
    return 1
  end
  local what = b.paused > 0 and b.draining or under_way(b, limited)
  call('HDEL', batch_key(batch), 'excess', 'short')
  local waiting = num(call('HGET', batch_key(batch), 'let_in'))
  if b.paused == 0 and waiting > 0 and (room_in(batch) or 0) < 0 then
    call('HSET', batch_key(batch), 'excess', waiting)
    if b.draining == 0 and b.limited then call('HSET', batch_key(batch), 'short', 1) end
    what = LIMITING
  end
  if what ~= 0 and (what ~= b.draining or what == LIMITING) then begin_slices(batch, what) end
  let_in(batch)
  return what ~= 0 and 1 or 0
end)
