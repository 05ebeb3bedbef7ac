expect('zset', P .. ':events', P .. ':lines', P .. ':pending', P .. ':given')
for _, ended in ipairs(a.ended) do expect('zset', key('ev', ended.id)) end

local lost = {}

local function end_claim(ended)
  local more = call('HGET', P .. ':claims', ended.id)
  local ends = call('ZSCORE', P .. ':lines', ended.id)
  if not more or not ends or tonumber(ends) ~= tonumber(ended.claim) then
    lost[#lost + 1] = ended.id
    return
  end
  local events = key('ev', ended.id)
  for _, sequence in ipairs(ended.told) do
    call('DEL', key('e', sequence))
    for _, name in ipairs({events, P .. ':events', P .. ':pending'}) do
      call('ZREM', name, sequence)
    end
  end
  for _, event in ipairs(ended.changed) do
    local sequence, done, retries, given_up = unpack(event)
    call('HSET', key('e', sequence), 'done', done, 'retries', retries)
    if given_up then
      call('ZREM', events, sequence)
      call('ZREM', P .. ':pending', sequence)
      call('ZADD', P .. ':given', sequence, sequence)
    end
  end
  if ended.goes_on then return end
  call('HDEL', P .. ':claims', ended.id)
  if more ~= '' or not ended.keeps or not ended.due then
    hurry(ended.id)
  else
    call('ZADD', P .. ':lines', ended.due, ended.id)
  end
end

for _, ended in ipairs(a.ended) do end_claim(ended) end
return lost
