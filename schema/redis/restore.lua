-- The leader writes the hash of a job that a worker has, where Redis does not know that.
-- KEYS cell, job:<id>    ARGV epoch, worker, attempt, field, value, field, value ...
-- A hash that names this worker and this attempt stays: its worker has said more since. Returns 1, or
-- -1 when the epoch is not the latest.
local epoch = tonumber(redis.call('HGET', KEYS[1], 'epoch') or '0')
if tonumber(ARGV[1]) < epoch then return -1 end
local has = redis.call('HMGET', KEYS[2], 'worker', 'attempt', 'finished')
if has[1] == ARGV[2] and has[2] == ARGV[3] and not has[3] then return 1 end
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], 'worker', ARGV[2], 'attempt', ARGV[3], unpack(ARGV, 4))
return 1
