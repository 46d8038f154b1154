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
  if paused == b.paused then return 0 end
  call('HSET', batch_key(batch), 'paused', paused)
  call('HDEL', batch_key(batch), 'excess', 'short')
  set_gated(batch, paused == 1 or b.limited)
  if paused == 1 then
    begin_slices(batch, PAUSING)
  elseif b.limited and b.draining == PAUSING then
    -- It got its limits while it was being paused: what still stands in the line was not let in.
    begin_slices(batch, LIMITING)
  elseif b.limited then
    end_slices(batch)
  else
    begin_slices(batch, RESUMING)
  end
  moved(paused == 1 and 'pause' or 'resume', top, top.state, top.state)
  write_ledger()
  let_in(batch)
  return 1
end)
