-- The leader gives a job to a worker, or sends it a message: status and message at once.
-- KEYS cell, q:<worker>, job:<id>    ARGV epoch, message, field, value, field, value ...
-- What an earlier attempt or an earlier life has left in the job's hash goes.
-- Returns 1, or -1 when the epoch is not the latest: an old leader can hand out nothing.
local epoch = tonumber(redis.call('HGET', KEYS[1], 'epoch') or '0')
if tonumber(ARGV[1]) < epoch then return -1 end
if #ARGV > 2 then
    redis.call('HDEL', KEYS[3], 'finished', 'manifest', 'error', 'seconds', 'step', 'steps')
    redis.call('PERSIST', KEYS[3])
    redis.call('HSET', KEYS[3], unpack(ARGV, 3))
end
redis.call('RPUSH', KEYS[2], ARGV[2])
return 1
