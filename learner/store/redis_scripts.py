"""What Redis runs in one go, in Lua, on keys of one shard."""

from __future__ import annotations

from hashlib import sha1

# KEYS: positions, feed, records, sums by hour. ARGV: the number of moves; the number of records; the block to append to
# the feed (none: no block); for each move its partition, the mark expected (none: no such field) and the new one; for
# each record the identity expected (none: no record), the new value (none: as it is), and seconds to live (0: for
# ever); for each hour its number, and cells with what is added to each. Sums have the hour first. Answers 1 if all is
# done, 0 if something else was held, -i if the key of the i-th record does not hold a string. All is read before
# anything is written: Redis may refuse a script's first write, and no other.
COMPARE_AND_SET = """
local n, r = tonumber(ARGV[1]), tonumber(ARGV[2])
for i = 4, 3 * n + 1, 3 do
  if (redis.call('HGET', KEYS[1], ARGV[i]) or '') ~= ARGV[i + 1] then
    return 0
  end
end
for i = 1, r do
  local held = redis.pcall('GETRANGE', KEYS[i + 2], 0, 7)
  if type(held) == 'table' then
    return -i
  elseif held ~= ARGV[3 * (n + i) + 1] then
    return 0
  end
end
local hours = {}
for i = r + 3, #KEYS do
  hours[i] = redis.call('BITFIELD', KEYS[i], 'GET', 'i64', '#0')[1]
end
for i = 4, 3 * n + 1, 3 do
  if ARGV[i + 1] ~= ARGV[i + 2] then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 2])
  end
end
if ARGV[3] ~= '' then
  redis.call('XADD', KEYS[2], '*', 'b', ARGV[3])
end
for i = 1, r do
  local at = 3 * (n + i) + 1
  if ARGV[at + 1] == '' then
    -- Only compared.
  elseif ARGV[at + 2] == '0' then
    redis.call('SET', KEYS[i + 2], ARGV[at + 1])
  else
    redis.call('SET', KEYS[i + 2], ARGV[at + 1], 'EX', ARGV[at + 2])
  end
end
for i = r + 3, #KEYS do
  local at = 3 * (n + r) + 2 * (i - r - 3) + 4
  local hour = tonumber(ARGV[at])
  if hour > hours[i] then
    redis.call('DEL', KEYS[i])
    redis.call('BITFIELD', KEYS[i], 'SET', 'i64', '#0', ARGV[at])
  end
  if hour >= hours[i] then
    local added = {}
    for cell, one in string.gmatch(ARGV[at + 1], '(%d+) (%-?%d+)') do
      local k = #added
      added[k + 1], added[k + 2], added[k + 3], added[k + 4] = 'INCRBY', 'i64', '#' .. cell, one
    end
    if #added > 0 then
      redis.call('BITFIELD', KEYS[i], unpack(added))
    end
  end
end
return 1
"""
COMPARE_AND_SET_SHA = sha1(COMPARE_AND_SET.encode()).hexdigest()

# KEYS: what learners tell of themselves, by name; until when that holds, by name. ARGV: who tells, what (nothing: no
# more), now, until when, and for how many seconds. It takes no time of Redis, which an account may not be let ask for.
TELL = """
for _, over in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[3])) do
  redis.call('HDEL', KEYS[1], over)
  redis.call('ZREM', KEYS[2], over)
end
if ARGV[2] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
  redis.call('ZREM', KEYS[2], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
  redis.call('ZADD', KEYS[2], ARGV[4], ARGV[1])
  redis.call('EXPIRE', KEYS[1], ARGV[5])
  redis.call('EXPIRE', KEYS[2], ARGV[5])
end
return 1
"""

# KEYS: the owner's key. ARGV: who claims it, or nothing; from whom, or nothing. Answers who has it.
CLAIM = """
local held = redis.call('GET', KEYS[1])
if ARGV[1] ~= '' and (not held or held == ARGV[2]) then
  redis.call('SET', KEYS[1], ARGV[1])
  return ARGV[1]
end
return held
"""
