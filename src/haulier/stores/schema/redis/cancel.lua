-- Cancel jobs or request it; the states, and the heads whose batches are to be drained.
-- Keys: those of cancelling.

return run(function()
  though_full()
  return {stop_jobs(list())}
end)
