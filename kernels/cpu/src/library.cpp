// The functions that Python calls. A handle (Context) is a team of threads and its working memory. The caller owns
// weights and caches.
//
// Layout: arrays are C-contiguous, with the shapes given in kernels/cpu/library.py. This file has no sums.
#include "checksum.h"
#include "draft.h"

namespace outrider {

struct Context {
    explicit Context(int threads) : pool(threads) {}

    Pool pool;
    Room room;
    Sampling sampling;
};

struct StageWeights {
    const LayerWeights* layers;
    void* const* caches;  // by layer
    int32_t count, embedding_kind;
    const void* embedding;  // [vocabulary][hidden], on the first stage
    const float* norm;      // after the last layer, on the last stage
};

namespace {

void run_stage(const Team& team, const Shape& shape, const StageWeights& stage, const Rows& rows, Room& room, float* hidden) {
    const long width = shape.hidden;
    const auto share = team.share(rows.rows);
    if (stage.embedding)
        embed_rows(team, shape, rows, stage.embedding, stage.embedding_kind, room.exchanged,
                   [&](int row) { return hidden + row * width; });
    team.barrier();
    LayerRunner runner(team, shape, rows, room, hidden, inner_stride(stage.layers, stage.count));
    for (int l = 0; l < stage.count; ++l) runner.run(stage.layers[l], stage.caches[l]);
    if (!stage.norm) return;
    runner.norm_rows(stage.norm);
    for (long row = share.begin; row < share.end; ++row)
        std::copy_n(room.normed.data() + row * width, width, hidden + row * width);
}

// The result of a call's exchanges: 0, or the purpose and the error code of the one that failed.
int64_t outcome(const Exchanged& exchanged) {
    return exchanged.broken ? static_cast<int64_t>(exchanged.purpose) << 32 | static_cast<uint32_t>(exchanged.broken) : 0;
}

}  // namespace
}  // namespace outrider

using namespace outrider;

extern "C" {

Context* outrider_open(int threads) { return new Context(threads); }

void outrider_close(Context* context) { delete context; }

void outrider_pack(const void* weights, int kind_of_weights, const int32_t* order, int panels, int inputs, int kind,
                   void* out, float* scales) {
    if (kind_of_weights == kFloat32)
        pack(static_cast<const float*>(weights), order, panels, inputs, kind, out, scales);
    else
        pack(static_cast<const uint16_t*>(weights), order, panels, inputs, kind, out, scales);
}

uint64_t outrider_checksum(const unsigned char* bytes, int64_t size) { return checksum(bytes, size); }

void outrider_linear(Context* context, int threads, int spins, const Linear* linear, int rows, const float* x, float* out) {
    context->pool.run(threads, spins, [&](const Team& team) {
        project(team, {linear, nullptr, linear->outputs}, rows, [&](int row) { return x + static_cast<long>(row) * linear->inputs; }, out);
    });
}

// Runs a stage's layers. `hidden` [rows][hidden] is the input, or on the first stage receives the tokens' embeddings.
// The output replaces it, on the last stage after the final norm. Returns `outcome`.
int64_t outrider_stage(Context* context, int threads, int spins, const Shape* shape, const StageWeights* stage,
                    const Rows* rows, float* hidden) {
    context->room.exchanged.broken = 0;
    prepare(*shape, *rows, threads, stage->layers, stage->count, context->room);
    context->pool.run(threads, spins, [&](const Team& team) {
        run_stage(team, *shape, *stage, *rows, context->room, hidden);
    });
    return outcome(context->room.exchanged);
}

// Stores logits [count][outputs] of rows `which` of `hidden`, and samples a token from each. `margins` receives the
// score's lead over the next best, unless it is null.
void outrider_sample(Context* context, int threads, int spins, const Linear* head, const float* hidden,
                     const int64_t* which, int count, const Draw* draws, float* logits, int64_t* tokens,
                     double* margins) {
    const long outputs = head->outputs;
    context->pool.run(threads, spins, [&](const Team& team) {
        project(team, {head, nullptr, head->outputs}, count, [&](int i) { return hidden + which[i] * head->inputs; }, logits);
        context->sampling.run(team, count, logits, outputs, static_cast<int>(outputs), nullptr, draws, tokens, margins);
    });
}

// Samples from logits [rows][count].
void outrider_draw(Context* context, int threads, int spins, const float* logits, int rows, int count, const Draw* draws,
                   int64_t* tokens) {
    context->pool.run(threads, spins, [&](const Team& team) {
        context->sampling.run(team, rows, logits, count, count, nullptr, draws, tokens, nullptr);
    });
}

// Runs the `modules` over the pairs with the states `hidden` before them, then drafts up to `steps` tokens, the
// largest depth of all data groups' sequences. A draft's margin is its score's lead over the next best. `stop_rules`
// [count] may end a sequence's drafting early; may be null. `made` [count] receives the number of drafts. `head`
// computes this rank's slice of `outputs`. `states` [pairs, and modules - 1 for each sequence][hidden] is working
// memory. `chain` is null with one module. `remask` is called for draws with a grammar. Returns `outcome`.
int64_t outrider_draft(Context* context, int threads, int spins, const Shape* shape, const ModuleWeights* weights,
                       int modules, const Linear* head, int outputs, const int32_t* ids, const Rows* pairs,
                       const float* hidden, const Chain* chain, float* states, const Going* going, int count, int steps,
                       const Draw* draws, const StopRule* stop_rules, int64_t* drafts, double* margins, int64_t* made,
                       Remask remask) {
    context->room.exchanged.broken = 0;
    Modules each(*shape, weights, modules, context->room);
    Drafting drafting(each, *shape, {head, ids, outputs}, *pairs, hidden, states, steps, chain, context->room, remask);
    drafting.prepare(going, count, draws, stop_rules, made, threads);
    context->pool.run(threads, spins, [&](const Team& team) { drafting.run(team, context->sampling, drafts, margins); });
    return outcome(context->room.exchanged);
}

// Opens a rank's end of a group in shared memory; see SharedGroup.
SharedGroup* outrider_group_open(void* memory, int rank, int size, int64_t room, int spins, int64_t timeout_ns) {
    return new SharedGroup(memory, rank, size, room, spins, timeout_ns);
}

void outrider_group_close(SharedGroup* group) {
    group->leave();
    delete group;
}

int64_t outrider_group_size(int size, int64_t room) { return SharedGroup::size_of(size, room); }

int32_t outrider_group_gather(void* group, int32_t what, const void* mine, int64_t bytes, int32_t root, void* all) {
    return gather_shared(group, what, mine, bytes, root, all);
}

int32_t outrider_group_exchange(void* group, int32_t what, const void* sent, const int64_t* sent_sizes, void* received,
                                const int64_t* received_sizes) {
    return exchange_shared(group, what, sent, sent_sizes, received, received_sizes);
}

// The group's traffic [kPurposes].
const Traffic* outrider_group_traffic(const SharedGroup* group) { return group->traffic; }
}
