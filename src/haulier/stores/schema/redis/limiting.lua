-- Changing limits. What counts against one is counted anew when it concerns other jobs than before; what
-- waits for room looks again. Keys: limits, limit:<name>, used:<limit>, rest:<limit>, circuit:<limit>, waits, again,
-- workers, running:<worker>, job:<id>.

local limiting = {}

-- All lanes that wait for room of their key are opened by the next claims, some by each: there may be as
-- many as keys.
function limiting.look_again()
  if call('EXISTS', key('again')) == 1 then
    local more = call('ZRANGE', key('waits'), 0, -1, 'WITHSCORES')
    for i = 1, #more, 2 do more[i], more[i + 1] = more[i + 1], more[i] end
    many('ZADD', key('again'), more)
    call('DEL', key('waits'))
  elseif call('EXISTS', key('waits')) == 1 then
    call('RENAME', key('waits'), key('again'))
  end
  wakes_ready = true
end

-- Whether running jobs are counted for a limit at all.
function limiting.counts(l) return l.concurrency or l.per_key end

-- How many jobs run that a limit concerns, by key, for each of some; and how many under any of them.
function limiting.recount(some)
  local found, running = {}, 0
  for n in ipairs(some) do found[n] = {} end
  for _, worker in ipairs(call('ZRANGE', key('workers'), 0, -1)) do
    for _, id in ipairs(call('ZRANGE', key('running:' .. worker), 0, -1)) do
      local h = call('HMGET', job_key(id), 'queue', 'kind', 'role', 'key')
      local any = 0
      for n, l in ipairs(some) do
        if not is_head(num(h[3])) and limits.concerns(l, h[1], h[2]) then
          local at = not l.per_key and '' or h[4]
          if at and limiting.counts(l) then found[n][at] = (found[n][at] or 0) + 1 end
          any = 1
        end
      end
      running = running + any
    end
  end
  return found, running
end

function limiting.count_anew(l)
  local counted = {}
  if limiting.counts(l) then
    for at, n in pairs(limiting.recount({l})[1]) do
      counted[#counted + 1] = at
      counted[#counted + 1] = n
    end
  end
  call('DEL', key('used:' .. l.name))
  many('HSET', key('used:' .. l.name), counted)
end

function limiting.forget(name)
  call('DEL', key('used:' .. name), key('rest:' .. name), key('circuit:' .. name))
end
