local found = {}
for _, state in ipairs(a.states) do
  found[#found + 1] = call('ZCARD', P .. ':in:' .. state)
end
return {found, call('ZCARD', P .. ':pending'), call('ZCARD', P .. ':given'),
  call('ZRANGE', P .. ':pending', 0, 0, 'WITHSCORES')}
