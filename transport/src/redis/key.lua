-- An idempotency key that gateways share. Prepended to both of its scripts.
--
-- KEYS  1 chat:idempotent:<id>
-- ARGV  1 now in microseconds, "" for the server's own time  2 by whom  3 the body's digest  4.. the ask
--
-- The key's text: "running" or "done", until when, by whom, the body's digest.
local call, format = redis.call, string.format
local KEY, BY, BODY = KEYS[1], ARGV[2], ARGV[3]
-- What it says is over with `until`; the key itself goes a minute later.
local KEEP_MS = 60000
local FOREIGN = 'FOREIGN what is no idempotency key of ours'

local now
if ARGV[1] == '' then
  local time = call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
else
  now = tonumber(ARGV[1])
end

local known, is_foreign = call('GET', KEY), false
local state, expires, by, body
if known then
  state, expires, by, body = known:match('^(%l+) (%d+) (%x+) (%x+)$')
  is_foreign = state ~= 'running' and state ~= 'done'
  -- What is over is as if it had never been.
  if state and tonumber(expires) <= now then state = nil end
end

local function write(what, span)
  local text = format('%s %.0f %s %s', what, now + span, BY, BODY)
  call('SET', KEY, text, 'PX', format('%.0f', math.ceil(span / 1000) + KEEP_MS))
end
