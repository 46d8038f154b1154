-- Go on with what follows from jobs that others wait for. Keys: those of flows.

return run(function()
  though_full()
  flows.follow(true)
end)
