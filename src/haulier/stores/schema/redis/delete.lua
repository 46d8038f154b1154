-- Delete a single job, or begin to delete a batch, which is then to be drained.
-- Keys: job:<id>, batch:<id>, and those of slices.

return run(function()
  though_full()
  local id = arg()
  local job = look(id)
  if not job then refuse('missing', '', id) end
  if job.state == RUNNING then
    refuse('state', 'job ' .. id .. ' is running: stop it before you delete it')
  end
  if job.role >= ITEM then
    refuse('state', 'job ' .. id .. ' is an item: delete its batch instead')
  end
  if job.role ~= HEAD then
    remove(job, false, true)
    write_ledger()
    return 0
  end
  local b = look_at_batch(id)
  if b.running + b.pending + b.unsettled > 0 then
    refuse('state', 'batch ' .. id .. ' still has items that are not finished')
  end
  if job.state == PENDING then
    -- Out of the line, or a worker might still take it and make items.
    drop(job)
    write_ledger()
  end
  begin_slices(id, DELETING)
  return 1
end)
