-- ARGV  2 how long a hold counts at most  3 how wide a slot of holds is  4.. of each bucket: "rpm" or "tpm", what the ask
--       takes to drain, the burst
-- Takes from all buckets, or from none: {'taken', the end of the slot that holds it}, or {'refused', which bucket,
-- microseconds to wait}.
local all = buckets()
if not all then return redis.error_reply(FOREIGN) end

-- The refusal that stands longest in the way, one for ever first; of equal ones the last.
local worst, longest
for i = 1, #all do
  local drain, burst = tonumber(ARGV[3 * i + 2]), tonumber(ARGV[3 * i + 3])
  local ahead = max(0, all[i].tat - now) + drain
  for at = 1, #all[i].held do ahead = ahead + all[i].held[at] end
  local wait = drain > burst and math.huge or max(0, ahead - burst)
  if wait > 0 and not (longest and longest > wait) then
    worst, longest = i, wait
  end
end
if worst then return {'refused', worst, longest == math.huge and 0 or longest} end

local ends, width = now + tonumber(ARGV[2]), tonumber(ARGV[3])
local into = math.fmod(ends, width)
if into > 0 then ends = ends - into + width end
for i = 1, #all do
  local bucket, drain = all[i], tonumber(ARGV[3 * i + 2])
  if ARGV[3 * i + 1] == 'rpm' then
    use_up(bucket, drain)
  else
    local at = slot(bucket, ends) or #bucket.ends + 1
    bucket.ends[at], bucket.held[at] = ends, (bucket.held[at] or 0) + drain
  end
  write(KEYS[i], bucket)
end
return {'taken', ends}
