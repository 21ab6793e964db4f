-- What a user and the models said last. KEYS[1]: history:<user>. ARGV: how many lines stay, then lines, each once.
for index = 2, #ARGV do
  if not redis.call('LPOS', KEYS[1], ARGV[index]) then
    redis.call('LPUSH', KEYS[1], ARGV[index])
  end
end
redis.call('LTRIM', KEYS[1], 0, ARGV[1] - 1)
return 1
