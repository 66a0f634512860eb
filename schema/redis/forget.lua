-- The leader takes a worker that is gone out of the list.
-- KEYS cell, workers, worker:<id>    ARGV epoch, worker
-- Returns 1, or -1 when the epoch is not the latest: an old leader can remove nobody.
local epoch = tonumber(redis.call('HGET', KEYS[1], 'epoch') or '0')
if tonumber(ARGV[1]) < epoch then return -1 end
redis.call('ZREM', KEYS[2], ARGV[2])
redis.call('DEL', KEYS[3])
return 1
