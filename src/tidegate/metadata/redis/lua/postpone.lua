local done = answered()
if done then return end
local e = key('e', a.sequence)
local id = call('HGET', e, 'id')
if not id or call('ZSCORE', P .. ':given', a.sequence) then return end
local events = key('ev', id)
expect('zset', events, P .. ':events', P .. ':due', P .. ':pending', P .. ':given')
call('HINCRBY', e, 'attempts', 1)
call('HSET', e, 'done', a.done)
call('ZREM', P .. ':due', a.sequence)
if a.due then
  call('HSET', e, 'due', a.due)
else
  call('ZREM', events, a.sequence)
  call('ZREM', P .. ':pending', a.sequence)
  call('ZADD', P .. ':given', a.sequence, a.sequence)
end
bring_forward(id)
answer({'ok'})
