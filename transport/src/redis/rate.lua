-- Rates of one tenant that gateways share: the buckets, and what both scripts do with them. Prepended to each of them.
--
-- The specification is `control::shared`. Times and amounts are whole microseconds below 2^53: what an ask takes to drain.
--
-- KEYS  a bucket each: pointsman:rate:{<tenant>}:<account>:<unit>, all in one slot
-- ARGV  1 now, "" for the server's own time  2.. the ask
--
-- A bucket is a text: when all that was used will have drained; then of each slot of holds its end, and what they are worth.
local call, max, floor, format = redis.call, math.max, math.floor, string.format
-- A bucket that has drained is forgotten a minute later: forgetting it grants nothing.
local KEEP_MS = 60000
local FOREIGN = 'FOREIGN what is no bucket of a rate'

local now
if ARGV[1] == '' then
  local time = call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
else
  now = tonumber(ARGV[1])
end

-- The buckets, without the holds that are over; nothing where one of them is no bucket.
local function buckets()
  local all = {}
  for i = 1, #KEYS do
    local text = call('GET', KEYS[i]) or '0'
    local bucket = {tat = tonumber(text:match('^%d+')), ends = {}, held = {}}
    if not bucket.tat or text:match('[^%d ]') then return nil end
    for ends, held in text:gmatch(' (%d+) (%d+)') do
      if tonumber(ends) > now then
        bucket.ends[#bucket.ends + 1], bucket.held[#bucket.held + 1] = tonumber(ends), tonumber(held)
      end
    end
    all[i] = bucket
  end
  return all
end

local function slot(bucket, ends)
  for at = 1, #bucket.ends do
    if bucket.ends[at] == ends then return at end
  end
  return nil
end

local function use_up(bucket, amount) bucket.tat = max(bucket.tat, now) + amount end

local function write(key, bucket)
  local words, last = {format('%.0f', bucket.tat)}, bucket.tat
  for at = 1, #bucket.ends do
    if bucket.held[at] > 0 then
      words[#words + 1] = format('%.0f %.0f', bucket.ends[at], bucket.held[at])
      last = max(last, bucket.ends[at])
    end
  end
  local live = floor(max(0, last - now) / 1000) + KEEP_MS
  call('SET', key, table.concat(words, ' '), 'PX', format('%.0f', live))
end
