// What Python calls. A handle is a pool of threads and the room its rounds need; weights and caches are the caller's.
#include <cstddef>

#include "model.h"
#include "sampling.h"

namespace outrider {
namespace {

struct Context {
    explicit Context(int threads) : pool(threads) {}

    Pool pool;
    Room room;
    Sampling sampling;
    std::vector<float> hidden, embedded, joined, logits;
};

struct Head {
    const Linear* linear;
    const int32_t* ids;  // the tokens that its outputs are, ascending; null: all, in order
};

struct StageWeights {
    const LayerWeights* layers;
    void* const* caches;  // by layer
    int32_t count, embedding_kind;
    const void* embedding;  // [vocabulary][hidden], on the first stage
    const float* norm;      // after the last layer, on the last stage
};

struct ModuleWeights {
    const LayerWeights* layer;
    void* cache;
    const float *embedding_norm, *hidden_norm, *norm;
    const Linear* join;
    const void* embedding;
    int32_t embedding_kind;
    int32_t unused;
};

struct Going {  // a sequence that is drafted for
    int64_t pair;    // its last pair's row
    int64_t depth;   // drafts wanted
    int64_t drafts;  // where they go
};

void embed(const Shape& shape, const void* table, int kind, int64_t token, float* out) {
    const long at = token * shape.hidden;
    for (int i = 0; i < shape.hidden; ++i)
        out[i] = kind == kFloat32 ? static_cast<const float*>(table)[at + i] : as_float32(static_cast<const uint16_t*>(table)[at + i]);
}

template <class Input>
void project(const Team& team, const Head& head, int rows, const Input& x, float* logits) {
    const int outputs = head.linear->outputs;
    product_of(team, *head.linear, rows, x, [&](int row, int first, const F16* sums) {
        store_panel(logits + static_cast<long>(row) * outputs, first, outputs, sums);
    });
    team.barrier();
}

// States after the module's norm: `states` [pairs][hidden], from the pairs and the states before them.
void run_module(const Team& team, const Shape& shape, const ModuleWeights& module, const Rows& pairs, Context& context,
                const float* hidden, float* states) {
    const int width = shape.hidden;
    const auto share = team.share(pairs.rows);
    for (long row = share.begin; row < share.end; ++row) {
        float* embedded = context.embedded.data() + row * width;
        float* joined = context.joined.data() + row * 2 * width;
        embed(shape, module.embedding, module.embedding_kind, pairs.token_ids[row], embedded);
        rms_norm(embedded, module.embedding_norm, width, shape.eps, joined);
        rms_norm(hidden + row * width, module.hidden_norm, width, shape.eps, joined + width);
    }
    team.barrier();
    product_of(team, *module.join, pairs.rows, [&](int row) { return context.joined.data() + static_cast<long>(row) * 2 * width; },
               [&](int row, int first, const F16* sums) {
                   store_panel(context.hidden.data() + static_cast<long>(row) * width, first, width, sums);
               });
    team.barrier();
    LayerRunner runner(team, shape, pairs, context.room, context.hidden.data(), inner_stride(module.layer, 1));
    runner.run(*module.layer, module.cache);
    for (long row = share.begin; row < share.end; ++row)
        rms_norm(context.hidden.data() + row * width, module.norm, width, shape.eps, states + row * width);
    team.barrier();
}

void grow_for_module(const Shape& shape, const ModuleWeights& module, const Rows& pairs, int threads, Context& context) {
    prepare(shape, pairs, threads, module.layer, 1, context.room);
    Room::grow(context.embedded, static_cast<long>(pairs.rows) * shape.hidden);
    Room::grow(context.joined, static_cast<long>(pairs.rows) * shape.hidden * 2);
    Room::grow(context.hidden, static_cast<long>(pairs.rows) * shape.hidden);
}

// One pair for each sequence that still drafts, with the block tables of the pairs they came from.
struct Step {
    std::vector<int64_t> tokens, positions, slots, offsets, write_from, block_offsets, block_ids;
    std::vector<float> states;

    Rows rows(int64_t first_slot) const {
        const auto count = static_cast<int32_t>(tokens.size());
        return {count, count, tokens.data(), positions.data(), slots.data(), offsets.data(), write_from.data(),
                block_offsets.data(), block_ids.data(), first_slot};
    }
};

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

void outrider_linear(Context* context, int threads, int spins, const Linear* linear, int rows, const float* x, float* out) {
    context->pool.run(threads, spins, [&](const Team& team) {
        project(team, {linear, nullptr}, rows, [&](int row) { return x + static_cast<long>(row) * linear->inputs; }, out);
    });
}

// Runs a stage's layers. `hidden` [rows][hidden]: what comes in, or on the first stage what the tokens embed to; what
// comes out is after the final norm on the last stage.
void outrider_stage(Context* context, int threads, int spins, const Shape* shape, const StageWeights* stage,
                    const Rows* rows, float* hidden) {
    prepare(*shape, *rows, threads, stage->layers, stage->count, context->room);
    const long inner = inner_stride(stage->layers, stage->count);
    context->pool.run(threads, spins, [&](const Team& team) {
        const auto share = team.share(rows->rows);
        if (stage->embedding)
            for (long row = share.begin; row < share.end; ++row)
                embed(*shape, stage->embedding, stage->embedding_kind, rows->token_ids[row], hidden + row * shape->hidden);
        team.barrier();
        LayerRunner runner(team, *shape, *rows, context->room, hidden, inner);
        for (int l = 0; l < stage->count; ++l) runner.run(stage->layers[l], stage->caches[l]);
        if (!stage->norm) return;
        runner.norm_rows(stage->norm);
        for (long row = share.begin; row < share.end; ++row)
            std::copy_n(context->room.normed.data() + row * shape->hidden, shape->hidden, hidden + row * shape->hidden);
    });
}

// logits [count][outputs] of rows `which` of `hidden`, kept; and a token drawn from each.
void outrider_sample(Context* context, int threads, int spins, const Linear* head, const float* hidden,
                     const int64_t* which, int count, const Draw* draws, float* logits, int64_t* tokens) {
    const long outputs = head->outputs;
    Room::grow(context->logits, count * outputs);
    context->pool.run(threads, spins, [&](const Team& team) {
        project(team, {head, nullptr}, count, [&](int i) { return hidden + which[i] * head->inputs; }, logits);
        const auto share = team.share(count);
        std::copy(logits + share.begin * outputs, logits + share.end * outputs, context->logits.data() + share.begin * outputs);
        context->sampling.run(team, count, context->logits.data(), outputs, static_cast<int>(outputs), nullptr, draws, tokens);
        team.barrier();
    });
}

// Draws from logits [rows][count], which are overwritten.
void outrider_draw(Context* context, int threads, int spins, float* logits, int rows, int count, const Draw* draws,
                   int64_t* tokens) {
    context->pool.run(threads, spins, [&](const Team& team) {
        context->sampling.run(team, rows, logits, count, count, nullptr, draws, tokens);
        team.barrier();
    });
}

// Feeds the pairs to the module, then drafts by recursion. `draws[i]` is how sequence i draws its first draft.
void outrider_draft(Context* context, int threads, int spins, const Shape* shape, const ModuleWeights* module,
                    const Linear* head, const int32_t* ids, const Rows* pairs, const float* hidden, float* states,
                    const Going* going, int count, const Draw* draws, int64_t* drafts) {
    const int width = shape->hidden;
    grow_for_module(*shape, *module, *pairs, threads, *context);
    Room::grow(context->logits, static_cast<long>(count) * head->outputs);
    Step step;
    Rows fed = *pairs;
    std::vector<int> live(count);
    std::vector<Draw> how(draws, draws + count);
    std::vector<int64_t> tokens(count);
    std::vector<const float*> from(count);
    for (int i = 0; i < count; ++i) {
        live[i] = i;
        from[i] = states + going[i].pair * width;
    }
    const auto deepen = [&](int depth) {  // what the next step feeds, from the tokens just drawn
        std::vector<int> deeper;
        Step next;
        next.offsets.push_back(0);
        next.block_offsets.push_back(0);
        for (size_t n = 0; n < live.size(); ++n) {
            const Going& sequence = going[live[n]];
            drafts[sequence.drafts + depth] = tokens[n];
            if (sequence.depth <= depth + 1) continue;
            const int owner = context->room.sequence_of_row[depth == 0 ? sequence.pair : static_cast<int64_t>(n)];
            const Rows& now = fed;
            const int64_t row = depth == 0 ? sequence.pair : static_cast<int64_t>(n);
            deeper.push_back(live[n]);
            next.tokens.push_back(tokens[n]);
            next.positions.push_back(now.positions[row] + 1);
            next.slots.push_back(now.slots[row] + 1);
            next.offsets.push_back(static_cast<int64_t>(deeper.size()));
            next.write_from.push_back(now.write_from[owner]);
            next.block_ids.insert(next.block_ids.end(), now.block_ids + now.block_offsets[owner], now.block_ids + now.block_offsets[owner + 1]);
            next.block_offsets.push_back(static_cast<int64_t>(next.block_ids.size()));
            next.states.insert(next.states.end(), from[n], from[n] + width);
            how[deeper.size() - 1] = how[n];
            ++how[deeper.size() - 1].position;
        }
        live = std::move(deeper);
        step = std::move(next);
        fed = step.rows(pairs->first_slot);
        for (size_t n = 0; n < live.size(); ++n) from[n] = states + static_cast<long>(n) * width;
        if (!live.empty()) grow_for_module(*shape, *module, fed, threads, *context);
    };
    context->pool.run(threads, spins, [&](const Team& team) {
        run_module(team, *shape, *module, fed, *context, hidden, states);
        for (int depth = 0; !live.empty(); ++depth) {
            const int rows = static_cast<int>(live.size());
            project(team, {head, ids}, rows, [&](int i) { return from[i]; }, context->logits.data());
            context->sampling.run(team, rows, context->logits.data(), head->outputs, head->outputs, ids, how.data(), tokens.data());
            if (team.index == 0) deepen(depth);
            team.barrier();
            if (live.empty()) break;
            run_module(team, *shape, *module, fed, *context, step.states.data(), states);
        }
    });
}
}
