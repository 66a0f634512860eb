-- A worker says that it lives, what it is and how far its jobs are.
-- KEYS cell, workers, worker:<id>, reports, job:<id> ...
-- ARGV worker, now (ms), seconds to live, report (for the leader), number of worker fields n,
--      n times field and value, then for each job: attempt, status, step, steps
-- A job's hash is touched only while it names this worker and this attempt, and has not ended: a
-- worker names a job until its report is acknowledged. Returns the cell's epoch and the 1-based
-- numbers of the jobs that are another's now: the worker drops them.
local lost = {tonumber(redis.call('HGET', KEYS[1], 'epoch') or '0')}
local fields = 2 * tonumber(ARGV[5])
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
redis.call('HSET', KEYS[3], unpack(ARGV, 6, 5 + fields))
redis.call('EXPIRE', KEYS[3], ARGV[3])
redis.call('XADD', KEYS[4], 'MAXLEN', '~', 1000000, '*', 'm', ARGV[4])
local at = 6 + fields
for i = 5, #KEYS do
    local has = redis.call('HMGET', KEYS[i], 'worker', 'attempt', 'finished')
    local own = has[1] == ARGV[1] and has[2] == ARGV[at]
    if own and not has[3] then
        redis.call('HSET', KEYS[i], 'status', ARGV[at + 1], 'step', ARGV[at + 2], 'steps', ARGV[at + 3])
    elseif has[1] and not own then
        lost[#lost + 1] = i - 4
    end
    at = at + 4
end
return lost
