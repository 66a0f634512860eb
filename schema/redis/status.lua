-- The leader writes a hash: a job's status, a batch's counters.
-- KEYS cell, hash    ARGV epoch, seconds to live (0: for ever), field, value, field, value ...
-- The hash is written anew, so that nothing of an earlier state is left in it. Returns 1, or -1 when
-- the epoch is not the latest.
local epoch = tonumber(redis.call('HGET', KEYS[1], 'epoch') or '0')
if tonumber(ARGV[1]) < epoch then return -1 end
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], unpack(ARGV, 3))
if ARGV[2] ~= '0' then redis.call('EXPIRE', KEYS[2], ARGV[2]) end
return 1
