-- Which schema there is; ours, if there is none yet.
expect('zset', P .. ':given', unpack(INDEXES))
expect('hash', P .. ':sums', P .. ':claims')
expect('string', P .. ':token', P .. ':sequence', P .. ':schema')

-- Every command that a script writes with, so that none is refused in the middle of one.
local try = key('try', a.holder)
call('HSET', try, 'x', 1)
call('HSETNX', try, 'y', 1)
call('HINCRBY', try, 'x', 1)
call('HDEL', try, 'x')
call('DEL', try)
call('ZADD', try, 0, 'x')
call('ZREM', try, 'x')
call('SADD', try, 'x')
call('SREM', try, 'x')
call('INCR', try)
call('SET', try, 'x', 'PX', 1)
call('PEXPIRE', try, 1)
call('DEL', try)
call('SET', P .. ':schema', a.schema, 'NX')

-- From 1 to 2: an upload's line is due, and not the oldest event of it.
if call('GET', P .. ':schema') == '1' then
  for _, sequence in ipairs(call('ZRANGE', P .. ':due', 0, -1)) do
    local id = call('HGET', key('e', sequence), 'id')
    call('ZADD', P .. ':lines', call('ZSCORE', P .. ':due', sequence), id)
  end
  -- Who is of version 1 and still at work is refused: nobody would deliver what it tells.
  call('SET', P .. ':due', 'see lines')
  call('SET', P .. ':schema', '2')
end

-- From 2 to 3: what is undone is found by that. Who is of version 2 and still at work does not keep
-- the list: what it leaves undone waits for its client, what it has done is looked at in vain.
if call('GET', P .. ':schema') == '2' then
  for _, id in ipairs(call('ZRANGE', P .. ':in:receiving', 0, -1)) do
    local promised, stored = unpack(call('HMGET', key('u', id), 'p', 'o'))
    -- Of most nothing has come yet, and something will.
    if stored ~= '0' or promised == '0' then
      local record = cjson.decode(call('HGET', key('u', id), 'r'))
      local whole = record.length and stored == promised
      if whole or (record.offset or 0) > (record.synced_offset or 0) then
        call('ZADD', P .. ':undone', 0, id)
      end
    end
  end
  call('SET', P .. ':schema', '3')
end
return call('GET', P .. ':schema')
