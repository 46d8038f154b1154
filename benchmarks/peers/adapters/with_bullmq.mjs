/* BullMQ on Node, with ioredis. The same command line and figures as contract.py.

A job is locked by its worker and moved back when the lock was not renewed: at least once. Finished
jobs are not kept (removeOnComplete). `concurrency` jobs at once. Bulk: addBulk. */

import { Queue, Worker } from "bullmq";

const WARM_UP = 50;
const LOOK_EVERY = 2;
const CHUNK = 1000;
const KEPT = { removeOnComplete: true };

const [command, ...words] = process.argv.slice(2);
const options = Object.fromEntries(words.filter((word) => word.includes("=")).map((word) => word.split("=")));
const [count, rate] = words.filter((word) => !word.includes("=")).map(Number);
const server = new URL(process.env.PEER_SERVER);
const connection = { host: server.hostname, port: Number(server.port), maxRetriesPerRequest: null };
const queue = new Queue("peers", { connection });

const seconds = () => Number(process.hrtime.bigint()) / 1e9;
const processor = () => {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
};
const pause = (milliseconds) => new Promise((done) => setTimeout(done, Math.max(milliseconds, 0)));

function answer(figures) {
  process.stdout.write(JSON.stringify(figures) + "\n", () => process.exit(0));
}

async function produce() {
  await queue.waitUntilReady();
  const began = seconds();
  for (let first = 0; first < count; first += CHUNK) {
    const jobs = [];
    for (let number = first; number < Math.min(first + CHUNK, count); number++) {
      jobs.push({ name: "job", data: { number }, opts: KEPT });
    }
    await queue.addBulk(jobs);
  }
  answer({ jobs: count, seconds: seconds() - began });
}

async function send() {
  const began = seconds();
  for (let number = 0; number < count + WARM_UP; number++) {
    await pause(1000 * (began + number / rate - seconds()));
    await queue.add("job", { number: seconds() }, KEPT);
  }
  answer({ jobs: count });
}

async function work(listening) {
  const jobs = listening ? count + WARM_UP : count;
  const latencies = [];
  let first = 0;
  let before = 0;
  let left = jobs;
  let allStarted;
  const all = new Promise((done) => { allStarted = done; });
  const worker = new Worker("peers", async (job) => {
    const now = seconds();
    if (!first) [first, before] = [now, processor()];
    if (listening) latencies.push(now - job.data.number);
    if (--left === 0) allStarted();
  }, { connection, concurrency: Number(options.concurrency ?? 100) });
  worker.on("error", (error) => { console.error(error); process.exit(1); });
  if (listening) console.log("ready");
  await all;
  for (;;) {
    const counts = await queue.getJobCounts("wait", "active", "delayed", "prioritized");
    if (!Object.values(counts).some((number) => number > 0)) break;
    await pause(LOOK_EVERY);
  }
  const took = seconds() - first;
  const used = processor() - before;
  const peak_mb = Math.round(process.resourceUsage().maxRSS / 102.4) / 10;
  if (!listening) return answer({ jobs, seconds: took, processor: used, peak_mb });
  const counted = latencies.slice(WARM_UP).sort((a, b) => a - b);
  const at = (rank) => Math.round(1e6 * counted[rank]) / 1000;
  answer({
    jobs: counted.length,
    p50_ms: at(Math.floor(counted.length / 2)),
    p99_ms: at(Math.ceil(counted.length * 0.99) - 1),
    peak_mb,
  });
}

const commands = { produce, send, work: () => work(false), listen: () => work(true) };
await commands[command]();
