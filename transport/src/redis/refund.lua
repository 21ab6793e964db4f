-- ARGV  10 hold
begin(ARGV[10], {})
if not finish(ARGV[10], 'refunded') then remember(ARGV[10], 'refunded', {}) end
return answer({'done'})
