-- The base of every script: keys, time, arguments, refusals. Constants of the domain stand above it.
-- Instants are microseconds UTC, ids the 36 characters of a UUID, `<place>` a job's number in 15
-- digits, a colon, and its id. In names of queues and kinds `:` is written %3A and `%` %25.
--
-- Key map, each behind the prefix (by default `haulier:`):
--   history               hash    epoch, generation, seq (last job's number), last (last event's), at, notes
--   job:<id>              hash    one job; fields that have their default are left out
--   payload:<id>          string  its payload, when that is too long for its hash to stay compact
--   errors:<id>           hash    lease -> the error that claim ended with, as JSON
--   steps:<id>            hash    name -> when, lease and result of a finished step, with spaces between
--   lines:<id>            hash    <lease>:<number> -> when and text of a log line
--   top below dead        zset    number -> id: all jobs but items; all items; all that failed
--   ready:<queue>:<kind>  zset    rank -> place: the line that claims take from
--   lane:<queue>:<kind>:<batch>:<key>  zset  rank -> place: the same where the line is limited, a lane
--                         for each key and batch; `head` in place of a batch: the heads
--   open:<queue>:<kind>   zset    order of turns -> lane: those that claims take from
--   waits                 zset    FAR, or until when -> lane: closed for want of room for its key
--   again                 zset    the same of lanes that are to be opened: a limit was changed
--   held                  hash    key -> the lanes that are closed for want of its room
--   shut:<batch>          zset    order of turns -> lane: closed for want of room in their batch
--   turns                 hash    lane -> when it was served last, of all that have jobs
--   limits limit:<name>   hash    name -> a limit as JSON, '' for one that was dropped; who changed it
--   used:<limit>          hash    key, or '' for all -> running jobs that count against it
--   rest:<limit>          zset    when its bucket is full again, or its window empty -> key, or ''
--   circuit:<limit>       hash    key -> how its breaker stands
--   scheduled             zset    run_at -> id: pending, not due yet
--   alone                 zset    run_at -> id: pending, to be run alone
--   batch:<id>            hash    one batch, beside its head's job
--   batches               zset    0 -> id of every batch that lies within no other
--   items:<batch>         zset    number -> id of its items; active: those that run;
--   active:<batch> failed:<batch>  failed: those that failed
--   parked:<batch>        zset    rank -> place: items that wait to be let in
--   inner:<batch> nested  zset    0 -> id of batches within that one; of all that lie within one
--   gated draining        set     ids of batches with a gate; of those with slices to be done
--   running:<worker>      zset    number -> id: what an incarnation runs
--   cancels:<worker>      set     ids among these that were asked to stop
--   edges:<id>            hash    parent -> <nth>:<otherwise>:<what it came to> of a job that waits for others
--   children:<id> untold:<id>  zset  number -> id of those that wait for a job; of those not told of its end
--   end:<id>              hash    what a job came to that others waited for
--   telling reviving      zset    0 -> id of jobs whose children are being told; number -> id, brought back
--   finished:<state>:<kind>  zset finished -> id: for retention, all but items
--   results:<kind>        zset    finished -> id: singles with a result
--   counts                hash    <queue>:<kind>:<role>:<state> -> how many
--   uniques periods       hash, zset  name -> holder; until -> name
--   schedules             zset    0 -> name of every schedule; schedule:<name> hash one of them
--   ticking               zset    next tick -> name of those that are not paused
--   ticks:<name> ticked   zset, hash  tick -> what became of it; job -> its schedule and tick
--   worker:<id>           hash    one incarnation; worker:health:<id> string that lives as long
--   workers alive ended   zset    started -> id; expires -> id; ended -> id
--   events                stream  <number of the last>-0: events that are alike, together
--   settings alterations  hash, list  name -> version, when, by whom, value; their last changes
--   inbox:<queue> rejected  list  what producers of other languages push; what was refused of it
-- Channels: events (JSON), wake:ready, wake:settled.

local call = redis.call
local PREFIX = string.sub(KEYS[1], 1, -8)
local now = tonumber(ARGV[1])
if not now then
  local time = call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- A whole number as text: Lua itself writes large ones as 1.7e+15.
local function whole(value) return string.format('%.0f', value) end

-- For the hot path: the server writes every number that it is handed with all its possible digits,
-- which takes longer than the command itself.
local NOW = whole(now)

local function key(name) return PREFIX .. name end

-- Who calls, and the place in the history that it remembers: epoch, last event, when that was.
local CALLER, EPOCH, LAST, LAST_AT = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local taken = 5

local function arg()
  taken = taken + 1
  return ARGV[taken]
end

-- When memory is full the server refuses a script's first write, unless that is a removal; then the
-- rest is allowed too. What makes jobs end, or go, must work even then.
local function though_full() call('HDEL', key('history'), 'none') end

-- The next argument; nil when it is empty.
local function optional()
  taken = taken + 1
  local value = ARGV[taken]
  if value ~= '' then return value end
end

local function number()
  taken = taken + 1
  return tonumber(ARGV[taken])
end

local function list()
  local values = {}
  for i = 1, number() do values[i] = arg() end
  return values
end

-- Ends the script with an error of ours. Only before anything was written: nothing is rolled back.
local function refuse(code, text, id)
  error({refused = {1, code, text, id or ''}})
end

-- Whether the script's verb is refused while nothing may change; see open_only.
local open_only = false

local function must_be_open()
  local h = call('HMGET', KEYS[1], 'stage', 'mark')
  if h[1] == 'frozen' or h[1] == 'moved' or h[1] == 'receiving' then refuse('frozen', h[2]) end
end

local function job_key(id) return PREFIX .. 'job:' .. id end
local function batch_key(id) return PREFIX .. 'batch:' .. id end

local function escaped(name)
  if not string.find(name, '[:%%]') then return name end
  return (string.gsub(string.gsub(name, '%%', '%%25'), ':', '%%3A'))
end

local function ready_key(queue, kind)
  return PREFIX .. 'ready:' .. escaped(queue) .. ':' .. escaped(kind)
end

local function place_of(seq, id)
  local digits = string.format('%d', seq)
  return string.sub('000000000000000', #digits + 1) .. digits .. ':' .. id
end
local function id_of(place) return string.sub(place, 17) end
local function rank_of(run_at, priority) return run_at - priority * POINT end

local function is_head(role) return role == HEAD or role == INNER end

local function num(value) return tonumber(value or 0) end

-- In the compact form of hashes of up to 512 fields (hash-max-listpack-entries) each field is looked for
-- from the first one on: some hundred of them take half a millisecond. A long value, if only for a
-- moment, takes a hash out of it for as long as it is there.
local function widen(at)
  if call('EXISTS', at) == 0 or call('OBJECT', 'ENCODING', at) == 'hashtable' then return end
  call('HSET', at, '\0', string.rep(' ', COMPACT + 1))
  call('HDEL', at, '\0')
end

-- A command with any number of arguments; Lua's stack holds some thousands.
local function many(command, at, values)
  if #values > WIDE and (command == 'HSET' or command == 'HDEL') then widen(at) end
  for i = 1, #values, 1000 do
    call(command, at, unpack(values, i, math.min(i + 999, #values)))
  end
end

-- The answers to a question about any number of members.
local function ask(command, at, members)
  if #members > WIDE and command == 'HMGET' then widen(at) end
  local found = {}
  for i = 1, #members, 1000 do
    local part = call(command, at, unpack(members, i, math.min(i + 999, #members)))
    for j = 1, #part do found[i + j - 1] = part[j] end
  end
  return found
end

-- All of a job, in the order of JOB_FIELDS. Most jobs have few fields, so that to ask for all there
-- are is quicker than to ask for each there could be.
local function row_of(id, at, without_payload)
  local fields, row = call('HGETALL', at), NO_FIELDS()
  for i = 1, #fields, 2 do
    local n = JOB_FIELDS[fields[i]]
    if n then row[n] = fields[i + 1] end
  end
  if without_payload then
    row[F_PAYLOAD] = 'null'
  elseif not row[F_PAYLOAD] then
    row[F_PAYLOAD] = call('GET', PREFIX .. 'payload:' .. id)
  end
  return row
end

-- What the rest of a script has to know of a job; nil for one that is not there.
local function look(id)
  local h = call('HMGET', job_key(id), 'state', 'seq', 'queue', 'kind', 'role', 'batch', 'attempt',
    'lease', 'worker', 'priority', 'cancel', 'gate', 'uniq', 'run_at', 'lost', 'finished', 'on_lost',
    'key', 'children', 'waits')
  if not h[1] then return nil end
  return {
    id = id, state = tonumber(h[1]), seq = tonumber(h[2]), queue = h[3], kind = h[4],
    role = num(h[5]), batch = h[6] or nil, attempt = num(h[7]), lease = num(h[8]),
    worker = tonumber(h[1]) == RUNNING and h[9] or nil, priority = num(h[10]), cancel = num(h[11]),
    gate = num(h[12]), uniq = h[13] or nil, run_at = tonumber(h[14]), lost = num(h[15]),
    finished = h[16] or nil, on_lost = num(h[17]), key = h[18] or nil,
    children = tonumber(h[19] or nil), waits = tonumber(h[20] or nil),
  }
end

-- An error as a job keeps it: with what only the store knows of it.
local function as_kept(err, lease, worker)
  return string.sub(err, 1, -2) .. ',"at":' .. whole(now) .. ',"lease":' .. lease .. ',"worker":'
    .. (worker and '"' .. worker .. '"' or 'null') .. '}'
end
