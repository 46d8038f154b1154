-- Pause or resume a batch; 1 if slices are to follow. From here on nothing of a paused one is
-- claimed; slices take its items out of the line, or put those of one without limits into it.
-- Keys: batch:<id>, gated, draining, job:<id>, parked:<batch>.

return run(function()
  though_full()
  local batch, paused = arg(), number()
  local b = look_at_batch(batch)
  if not b then refuse('missing', '', batch) end
  local top = look(batch)
  if top.state > RUNNING or b.cancel > 0 then
    refuse('state', 'this batch has ended, or is being cancelled')
  end
  if b.draining ~= 0 and b.draining ~= PAUSING and b.draining ~= RESUMING and b.draining ~= LIMITING then
    refuse('state', 'a retry or delete of this batch is still under way')
  end
  if (paused == 1) == has_own_pause(b.paused) then return 0 end
  if b.paused >= 2 then
    -- It is held by the batch around it; only whether it will be by itself has changed.
    call('HSET', batch_key(batch), 'paused', 2 + paused)
  else
    set_paused(b, paused)
  end
  moved(paused == 1 and 'pause' or 'resume', top, top.state, top.state)
  write_ledger()
  let_in(batch)
  return 1
end)
