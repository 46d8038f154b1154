-- End an incarnation and give its jobs to others; how many, whether it holds more, what is to drain.
-- Keys: those of incarnations.

return run(function()
  though_full()
  local released, more = release_jobs(arg())
  local _, drain_later = conclude()
  if limits.known() then lanes.finish() end
  return {released, more and 1 or 0, drain_later}
end)
