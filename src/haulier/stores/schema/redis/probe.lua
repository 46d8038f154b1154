-- Which of the given commands fail, and why; each is tried on a key that is gone in the end.
-- Keys: check:<n>.

return run(function()
  local refused = {}
  for _ = 1, number() do
    local length = number()
    local answer = redis.pcall(unpack(ARGV, taken + 1, taken + length))
    if type(answer) == 'table' and answer.err then
      refused[#refused + 1] = ARGV[taken + 1]
      refused[#refused + 1] = answer.err
    end
    taken = taken + length
  end
  return refused
end)
