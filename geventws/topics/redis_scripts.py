"""What Redis does in one step, in Lua. All keys of a script are of one topic, and so in one slot of a cluster."""

from __future__ import annotations

from hashlib import sha1

__all__ = ["CLEAN", "HEARTBEAT", "JOIN", "LEASE", "LEAVE", "LIVE", "PUBLISH", "READ", "RELEASE", "SCRIPTS", "Script"]


class Script:
    """A script, which is called by its hash."""

    def __init__(self, text: str) -> None:
        self.text = text.encode()
        self.hash = sha1(self.text).hexdigest().encode()


# Lua prints such numbers as an epoch in scientific notation, so they stay text.
_HISTORY = """
local function last_id(stream)
  -- Half the time of XINFO, but it tells nothing of a history without messages.
  local last = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)
  if last[1] then return last[1][1] end
  if redis.call('EXISTS', stream) == 0 then return nil end
  local info = redis.call('XINFO', 'STREAM', stream)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then return info[i + 1] end
  end
end
local function new_epoch()
  local time = redis.call('TIME')
  return time[1] .. string.format('%06d', time[2])
end
"""

#: KEYS: stream, channel. ARGV: messages kept, milliseconds kept or "", kind or "" for no message, payload, its source,
#: the source of the one before it, the number of the first that is perhaps lost or "", PUBLISH or SPUBLISH. One who
#: knows of no history says that 0 are kept, and at last what is published where Redis has none either.
#: What is lost indeed gets an entry of its own before the message, so that none is told of the one without the other.
#: A source is 8 bytes of origin and 8 of sequence number; an entry has one byte more where all before it is settled.
PUBLISH = Script(
    _HISTORY
    + """
local stream, channel, first = KEYS[1], KEYS[2], tonumber(ARGV[7])
local last = last_id(stream)
local kept, expires, at_least = ARGV[1], ARGV[2], ''
if kept == '0' then
  if not last then
    redis.call(ARGV[8], channel, ARGV[9])
    return
  end
  -- The next publisher who knows the numbers puts them right.
  kept, expires, at_least = math.max(redis.call('XLEN', stream), 10000), '', ARGV[2]
end
local function add(kind, source, payload, settled)
  local id = last and string.match(last, '^%d+') .. '-*' or new_epoch() .. '-1'
  last = redis.call('XADD', stream, 'MAXLEN', '=', kept, id, 'k', kind, 's', source .. settled, 'p', payload)
  if expires ~= '' then redis.call('PEXPIRE', stream, expires) end
  if at_least ~= '' then redis.call('PEXPIRE', stream, at_least, 'GT') end
  redis.call(ARGV[8], channel, '\\1' .. kind .. last .. ' ' .. source .. payload)
end
local function sequence(source)
  local number = 0
  for i = 9, 16 do number = number * 256 + string.byte(source, i) end
  return number
end
local function lost()
  local origin, until_, found, from = string.sub(ARGV[6], 1, 8), sequence(ARGV[6]), 0, '+'
  while true do
    local entries = redis.call('XREVRANGE', stream, from, '-', 'COUNT', 32)
    for _, entry in ipairs(entries) do
      local source = entry[2][4]
      if source and #source >= 16 and string.sub(source, 1, 8) == origin then
        local number = sequence(source)
        if number < first then return until_ - first + 1 - found end
        if #source > 16 then return until_ - number - found end
        found = found + 1
      end
    end
    if #entries < 32 then return until_ - first + 1 - found end
    from = '(' .. entries[32][1]
  end
end
if first then
  local count = lost()
  if count > 0 then add('g', ARGV[6], count, '!') end
end
if ARGV[3] ~= '' then add(ARGV[3], ARGV[5], ARGV[4], first and '!' or '') end
return last
"""
)

#: KEYS: stream. ARGV: position to read from or "" for no messages, last position to read or "+", milliseconds or "".
#: Gives where the history stands, and the messages. A topic without a history gets one, so that it has a position.
READ = Script(
    _HISTORY
    + """
local last = last_id(KEYS[1])
if not last then
  last = new_epoch() .. '-0'
  redis.call('XADD', KEYS[1], last, 'k', '')
  redis.call('XDEL', KEYS[1], last)
  if ARGV[3] ~= '' then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
end
if ARGV[1] == '' then return {last, {}} end
return {last, redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], ARGV[2])}
"""
)

# A member is a field of its topic's hash: its key, and as value "<lease> <microseconds> <name>".

#: KEYS: members, channel. ARGV: key, lease, name, PUBLISH or SPUBLISH.
JOIN = Script(
    """
local time = redis.call('TIME')
local new = redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0
local since = time[1] .. string.format('%06d', time[2])
if not new then
  since = string.match(redis.call('HGET', KEYS[1], ARGV[1]), '^%S+ (%d+) ') or since
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ' ' .. since .. ' ' .. ARGV[3])
if new then redis.call(ARGV[4], KEYS[2], '\\1J' .. ARGV[1] .. ' ' .. ARGV[3]) end
return new and 1 or 0
"""
)

#: KEYS: members, channel. ARGV: key, PUBLISH or SPUBLISH.
LEAVE = Script(
    """
local value = redis.call('HGET', KEYS[1], ARGV[1])
if not value then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call(ARGV[2], KEYS[2], '\\1L' .. ARGV[1] .. ' ' .. (string.match(value, '^%S+ %d+ (.*)$') or ''))
return 1
"""
)

#: KEYS: members, channel. ARGV: lease, PUBLISH or SPUBLISH. Takes away what has this lease.
CLEAN = Script(
    """
local all = redis.call('HGETALL', KEYS[1])
local prefix = ARGV[1] .. ' '
local count = 0
for i = 1, #all, 2 do
  if string.sub(all[i + 1], 1, #prefix) == prefix then
    redis.call('HDEL', KEYS[1], all[i])
    redis.call(ARGV[2], KEYS[2], '\\1L' .. all[i] .. ' ' .. (string.match(all[i + 1], '^%S+ %d+ (.*)$') or ''))
    count = count + 1
  end
end
return count
"""
)

#: KEYS: workers. ARGV: own lease or "", its milliseconds, milliseconds that a cleaner gets.
#: Gives whether our lease had run out, and the leases that ran out, each to one cleaner at a time: a claim is an entry
#: of the same set, "clean <lease>".
HEARTBEAT = Script(
    """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local gone = 0
if ARGV[1] ~= '' then
  local old = redis.call('ZSCORE', KEYS[1], ARGV[1])
  if not old or tonumber(old) < now then
    gone = 1
  else
    redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
  end
end
local dead = {}
for _, lease in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. now)) do
  if string.sub(lease, 1, 6) ~= 'clean ' then
    local claim = redis.call('ZSCORE', KEYS[1], 'clean ' .. lease)
    if not claim or tonumber(claim) < now then
      redis.call('ZADD', KEYS[1], now + ARGV[3], 'clean ' .. lease)
      dead[#dead + 1] = lease
      if #dead == 16 then break end
    end
  end
end
return {gone, dead}
"""
)

#: KEYS: workers. ARGV: lease, milliseconds. Gives a worker its lease.
LEASE = Script(
    """
local time = redis.call('TIME')
redis.call('ZADD', KEYS[1], time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2], ARGV[1])
return 1
"""
)

#: KEYS: workers. ARGV: lease. Forgets a worker whose members are gone.
RELEASE = Script("return redis.call('ZREM', KEYS[1], ARGV[1], 'clean ' .. ARGV[1])")

#: KEYS: workers. Gives the leases that run.
LIVE = Script(
    """
local time = redis.call('TIME')
return redis.call('ZRANGEBYSCORE', KEYS[1], time[1] * 1000 + math.floor(time[2] / 1000), '+inf')
"""
)

SCRIPTS = (PUBLISH, READ, JOIN, LEAVE, CLEAN, HEARTBEAT, LEASE, RELEASE, LIVE)
