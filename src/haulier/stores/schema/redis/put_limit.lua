-- Add a limit, or put it in place of the one of its name; 1 if anything changed. `limit:<name>` keeps who
-- changed it, when, and what code declared last, also of one that was dropped: it must stay away.
-- Keys: those of limiting.

local function same_jobs(a, b)
  return a.queue == b.queue and a.kind == b.kind and a.per_key == b.per_key
    and limiting.counts(a) == limiting.counts(b)
end

return run(function()
  local name, text, by, declared = arg(), arg(), arg(), number() == 1
  local there = call('HGET', key('limits'), name)
  local at = key('limit:' .. name)
  if declared and call('HGET', at, 'declared') == text then return 0 end
  if declared then call('HSET', at, 'declared', text) end
  if there == text then return 0 end
  call('HSET', key('limits'), name, text)
  call('HSET', at, 'by', by, 'at', NOW, 'own', declared and 1 or 0)
  local l, old = cjson.decode(text), there and there ~= '' and cjson.decode(there) or {}
  if not same_jobs(l, old) then limiting.count_anew(l) end
  local alike = (l.rate and old.rate or l.breaker and old.breaker) and l.per_key == old.per_key
  if not alike then call('DEL', key('rest:' .. name), key('circuit:' .. name)) end
  limiting.look_again()
  say_of_nobody('limit_changed', {name}, by)
  return 1
end)
