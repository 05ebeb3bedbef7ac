// A headless browser, driven case by case: it stays for as long as stdin is open.
//   node browser-driver.mjs /usr/bin/chromium path/to/page.js

import { readFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { chromium } from 'playwright-core'
import { listen, say } from './lines.mjs'

const [executablePath, bundle] = process.argv.slice(2)

const files = {
  '/': ['text/html; charset=utf-8', await readFile(new URL('page.html', import.meta.url))],
  '/page.js': ['text/javascript; charset=utf-8', await readFile(bundle)],
}
const site = createServer((request, response) => {
  const [type, body] = files[request.url] ?? []
  response.writeHead(body ? 200 : 404, body ? { 'Content-Type': type } : {})
  response.end(body)
})
await new Promise((resolve) => site.listen(0, '127.0.0.1', resolve))
const origin = `http://127.0.0.1:${site.address().port}`

// playwright makes a new, empty --user-data-dir for each launch, and removes it
const browser = await chromium.launch({
  executablePath,
  args: [
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--no-proxy-server',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
  ],
})
say({ event: 'ready', version: browser.version(), origin })

let context = null
let page = null

// A resumed case loads the page anew in the same browser profile, as a person would who
// comes back: only what the client put into local storage is left. Any other gets a new profile.
async function run(wanted) {
  if (!wanted.resume) {
    await context?.close()
    context = await browser.newContext()
    page = await context.newPage()
    page.on('pageerror', (error) => console.error(`page: ${error}`))
    page.on('console', (message) => console.error(`console: ${message.text()}`))
  }
  await page.goto(`${origin}/`)
  await page.setInputFiles('#file', wanted.file)
  say({ result: await page.evaluate((given) => window.runCase(given), wanted) })
}

await listen(run, (terminate) => page.evaluate((given) => window.abortCase(given), terminate))
await browser.close()
site.close()
