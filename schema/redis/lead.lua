-- Takes or keeps the lead.
-- KEYS cell    ARGV epoch, leader, nonce, now (RFC 3339), host:port of its HTTP
-- Returns -1: another leader has a later epoch; 0: Redis knows nothing of this term yet, or has
-- forgotten it: write everything again; 1: it does.
local epoch = tonumber(redis.call('HGET', KEYS[1], 'epoch') or '0')
if tonumber(ARGV[1]) < epoch then return -1 end
local known = redis.call('HGET', KEYS[1], 'nonce') == ARGV[3]
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'leader', ARGV[2], 'nonce', ARGV[3], 'time', ARGV[4],
    'api', ARGV[5])
return known and 1 or 0
