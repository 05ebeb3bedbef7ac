local claimed = answered()
if not claimed then
  claimed = call('ZRANGEBYSCORE', P .. ':due', '-inf', a.now, 'LIMIT', 0, a.limit)
  if #claimed == 0 then return {} end
  expect('zset', P .. ':due')
  for _, sequence in ipairs(claimed) do
    call('ZADD', P .. ':due', a.ends, sequence)
  end
  answer(claimed)
end
local deliveries = {}
for _, sequence in ipairs(claimed) do
  local event = call('HMGET', key('e', sequence), 'record', 'attempts', 'done')
  if event[1] then
    deliveries[#deliveries + 1] = {sequence, event[1], event[2], event[3]}
  end
end
return deliveries
