local done = answered()
if done then return 1 end
local e = key('e', a.sequence)
local id, at = unpack(call('HMGET', e, 'id', 'at'))
if not id or not call('ZSCORE', P .. ':given', a.sequence) then return 0 end
local events = key('ev', id)
expect('zset', events, P .. ':lines', P .. ':pending')
expect('hash', P .. ':claims')
call('ZREM', P .. ':given', a.sequence)
call('ZADD', P .. ':pending', at, a.sequence)
call('HSET', e, 'done', '', 'retries', '')
call('ZADD', events, a.sequence, a.sequence)
hurry(id)
answer({'ok'})
return 1
