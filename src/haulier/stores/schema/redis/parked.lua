-- Whether a pending job stands in a lane that is closed. Keys: job:<id>, and those of lanes.

return run(function()
  local job = look(arg())
  if not job or job.state ~= PENDING or not limits.known() then return 0 end
  local _, closed = lanes.stand_of(job.queue, job.kind, job.role, job.batch, job.key,
    place_of(job.seq, job.id))
  return closed and 1 or 0
end)
