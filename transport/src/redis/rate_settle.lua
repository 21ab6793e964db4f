-- ARGV  2.. of each bucket: the end of the slot that holds it, what is held, what was used in its place
-- What is no longer held is not given back.
local all = buckets()
if not all then return redis.error_reply(FOREIGN) end
for i = 1, #all do
  local bucket = all[i]
  local at = slot(bucket, tonumber(ARGV[3 * i - 1]))
  if at then bucket.held[at] = max(0, bucket.held[at] - tonumber(ARGV[3 * i])) end
  use_up(bucket, tonumber(ARGV[3 * i + 1]))
  write(KEYS[i], bucket)
end
return 1
