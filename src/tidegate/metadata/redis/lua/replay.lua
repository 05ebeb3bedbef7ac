local done = answered()
if done then return 1 end
local e = key('e', a.sequence)
local id, at = unpack(call('HMGET', e, 'id', 'at'))
if not id or not call('ZSCORE', P .. ':given', a.sequence) then return 0 end
local events = key('ev', id)
expect('zset', events, P .. ':due', P .. ':pending')
call('ZREM', P .. ':given', a.sequence)
call('ZADD', P .. ':pending', at, a.sequence)
call('HSET', e, 'attempts', 0, 'done', '', 'due', '0')
-- What was next is not any more, unless it is older still.
local head = call('ZRANGE', events, 0, 0)[1]
if head and head > a.sequence then
  call('HSET', key('e', head), 'due', call('ZSCORE', P .. ':due', head))
  call('ZREM', P .. ':due', head)
end
call('ZADD', events, a.sequence, a.sequence)
bring_forward(id)
answer({'ok'})
return 1
