-- Insert pending jobs. Keys: those of inserts.

return run(function()
  local fenced, lease = optional(), arg()
  if fenced then check_fence(fenced, lease) end
  local policy, jobs = read_policy(), read_jobs()
  local named = mark_new(jobs)
  if named then judge(jobs) end
  check_open(jobs)
  flows.check(jobs)
  -- First the batches: items that come with their head have to see its gate.
  for _, job in ipairs(jobs) do
    if job.new and is_head(job.run.role) then add_batch(job.id, policy, 1, job.run.batch) end
  end
  local new = named and write_named(jobs, PENDING) or write_jobs(jobs, PENDING)
  flows.add(jobs)
  return {new, instead_of(jobs)}
end)
