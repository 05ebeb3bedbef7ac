local claimed = answered()
if not claimed then
  claimed = call('ZRANGEBYSCORE', P .. ':lines', '-inf', a.now, 'LIMIT', 0, a.limit)
  if #claimed == 0 then return {} end
  expect('zset', P .. ':lines')
  expect('hash', P .. ':claims')
  for _, id in ipairs(claimed) do
    call('ZADD', P .. ':lines', a.ends, id)
    call('HSET', P .. ':claims', id, '')
  end
  answer(claimed)
end
local lines = {}
for _, id in ipairs(claimed) do
  local deliveries = {}
  for _, sequence in ipairs(call('ZRANGE', key('ev', id), 0, -1)) do
    local event = call('HMGET', key('e', sequence), 'record', 'done', 'retries')
    deliveries[#deliveries + 1] = {sequence, event[1], event[2], event[3]}
  end
  lines[#lines + 1] = {id, deliveries}
end
return lines
