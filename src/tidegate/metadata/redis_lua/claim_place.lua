-- Which schema there is; ours, if there is none yet.
expect('zset', P .. ':given', unpack(INDEXES))
expect('hash', P .. ':sums')
expect('string', P .. ':token', P .. ':sequence', P .. ':schema')
call('SET', P .. ':schema', a.schema, 'NX')
return call('GET', P .. ':schema')
