// BullMQ doing what `atelier bench fleet` measures: bulk adds, then no-op jobs completed, against the
// same Redis. node bullmq.js REDIS_URL JOBS, with bullmq and ioredis installed where node finds them.
// Prints one JSON object.
const { Queue, Worker } = require("bullmq");
const { Redis } = require("ioredis");

const CHUNK = 1000; // jobs of one addBulk
const WORKERS = 2, CONCURRENCY = 100;

async function main() {
    const url = process.argv[2], jobs = Number(process.argv[3]);
    const connect = () => new Redis(url, { maxRetriesPerRequest: null });
    const queue = new Queue("bench", { connection: connect() });
    const payload = { model: "tiny-shapes", steps: 20,
        prompt: "a glossy red star above a blue circle on a white background" };
    await queue.obliterate({ force: true });

    let begin = process.hrtime.bigint();
    for (let i = 0; i < jobs; i += CHUNK)
        await queue.addBulk(Array.from({ length: Math.min(CHUNK, jobs - i) }, (_, k) => ({
            name: "draw", data: { ...payload, id: `first-${i + k}`, seed: i + k },
            opts: { jobId: `first-${i + k}` } })));
    const added = jobs / (Number(process.hrtime.bigint() - begin) / 1e9);

    let done = 0;
    begin = process.hrtime.bigint();
    await new Promise((resolve) => {
        for (let w = 0; w < WORKERS; w++) {
            const worker = new Worker("bench", async () => 0,
                { connection: connect(), concurrency: CONCURRENCY });
            worker.on("completed", () => { if (++done === jobs) resolve(); });
        }
    });
    const completed = jobs / (Number(process.hrtime.bigint() - begin) / 1e9);
    console.log(JSON.stringify({ added: Math.round(added), completed: Math.round(completed) }));
    process.exit(0);
}

main().catch((error) => { console.error(error); process.exit(1); });
