-- Whether there are limits, and which concern a line. All else that has to do with them is in parts that a
-- script makes only when there are some, or once were: to those without they would cost more than their
-- jobs do. Keys: limits.

local limits = {all = {}, by_line = {}, freed = 0, filled = 0, keys = {}, parts = {}}
local lanes = {entering = {}, order = {}}
local serving = {looked = 0, taken = 0, fetched = 0, rooms = {}, touched = {}, lines = {}}

function limits.concerns(l, queue, kind)
  return (not l.queue or l.queue == queue) and (not l.kind or l.kind == kind)
end

-- Whether there are limits, or once were: then jobs may stand in lanes.
function limits.known()
  if limits.any ~= nil then return limits.any end
  local flat = call('HGETALL', key('limits'))
  limits.any = #flat > 0
  if limits.any then
    for _, make in ipairs(limits.parts) do make() end
    limits.read(flat)
  end
  return limits.any
end

-- The limits of a line: those that are one for all, and those of each key; nil if it has none.
function limits.of(queue, kind)
  if not limits.known() then return nil end
  local line = escaped(queue) .. ':' .. escaped(kind)
  local found = limits.by_line[line]
  if found == nil then
    found = limits.choose(queue, kind)
    limits.by_line[line] = found
  end
  return found or nil
end
