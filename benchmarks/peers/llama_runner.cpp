// llama.cpp behind the runners' protocol (protocol.py), on its own common library, speculation included.
//
//     llama-runner --model FILE.gguf --parallel 8 --threads 2 --flash-attn on [--spec-type draft-mtp]
//
// Takes llama.cpp's own options. A prompt's tokens and its drafts go through one batch for all prompts.

#include "arg.h"
#include "build-info.h"
#include "common.h"
#include "ggml-cpu.h"
#include "llama.h"
#include "log.h"
#include "speculative.h"

#include <nlohmann/json.hpp>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

using json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

static double seconds_since(Clock::time_point began) {
    return std::chrono::duration<double>(Clock::now() - began).count();
}

// One prompt and what it has grown. `cached` are the tokens in the model's cache; the last one is not yet among them.
struct Sequence {
    llama_tokens cached;
    llama_token last = LLAMA_TOKEN_NULL;
    llama_tokens draft;
    llama_tokens output;

    void emit(llama_token token) {
        output.push_back(token);
        last = token;
    }
};

class Runner {
public:
    explicit Runner(common_params & params) {
        const auto limits = common_speculative_get_output_limits(
            params.n_batch, params.n_parallel, common_speculative_n_max(&params.speculative));
        params.n_outputs_max = limits.total;
        params.n_outputs_max_per_seq = limits.per_seq;
        loaded = common_init_from_params(params);
        if (loaded->context() == nullptr) {
            throw std::runtime_error("cannot load " + params.model.path);
        }
        context = loaded->context();
        vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(loaded->model()));
        if (common_speculative_n_max(&params.speculative) > 0) {
            auto draft_params = common_base_params_to_speculative(params);
            drafting = common_speculative_init_from_params(draft_params, loaded->model(), context);
            draft_context = drafting->context();
            params.speculative.draft.ctx_tgt = context;
            params.speculative.draft.ctx_dft = draft_context;
        }
        share_threads(params);
        batch = common_batch(context);
        prompts_at_once = params.n_parallel;
        speculation_params = params.speculative;
    }

    json answer(const json & request) {
        forget();
        const size_t max_tokens = request.at("max_tokens");
        std::vector<Sequence> sequences;
        const auto began = Clock::now();
        for (const auto & prompt : request.at("prompts")) {
            sequences.push_back({prompt.get<llama_tokens>(), LLAMA_TOKEN_NULL, {}, {}});
        }
        prefill(sequences);
        const double first = seconds_since(began);
        while (step(sequences, max_tokens)) {
        }
        json tokens = json::array();
        for (auto & sequence : sequences) {
            tokens.push_back(sequence.output);
        }
        return {{"seconds_first", first}, {"seconds", seconds_since(began)}, {"tokens", tokens}};
    }

private:
    struct FreeThreads {
        void operator()(ggml_threadpool * pool) const { ggml_threadpool_free(pool); }
    };
    std::unique_ptr<ggml_threadpool, FreeThreads> threads; // outlives the contexts that use it
    common_init_result_ptr loaded;
    common_speculative_init_result_ptr drafting;
    common_speculative_ptr speculation;
    llama_context * context = nullptr;
    llama_context * draft_context = nullptr;
    common_params_speculative speculation_params;
    int32_t prompts_at_once = 1;
    int32_t vocabulary = 0;
    common_batch batch;

    // One pool of threads for the model and its drafter: without one, a context starts new threads for each call, and
    // of two pools the idle one spins while the other computes.
    void share_threads(common_params & params) {
        auto wanted = ggml_threadpool_params_from_cpu_params(params.cpuparams);
        threads.reset(ggml_threadpool_new(&wanted));
        llama_attach_threadpool(context, threads.get(), nullptr);
        if (draft_context != nullptr) {
            llama_attach_threadpool(draft_context, threads.get(), nullptr);
        }
    }

    // Empties the caches, and starts the drafters anew: some remember what earlier requests were answered, and would
    // draft a repeated prompt's text from memory.
    void forget() {
        llama_memory_clear(llama_get_memory(context), false);
        if (draft_context != nullptr) {
            llama_memory_clear(llama_get_memory(draft_context), false);
        }
        if (drafting) {
            speculation.reset(); // before the next one takes over the draft context's samplers
            speculation.reset(common_speculative_init(speculation_params, prompts_at_once));
            if (!speculation) {
                throw std::runtime_error("cannot start the speculation asked for");
            }
        }
    }

    void forward() {
        if (llama_process(context, LLAMA_PROCESS_TYPE_DECODE, batch.get()) != 0) {
            throw std::runtime_error("llama_process failed");
        }
        if (speculation && !common_speculative_process(speculation.get(), batch)) {
            throw std::runtime_error("the drafter failed");
        }
    }

    llama_token likeliest(int32_t row) const {
        const float * logits = llama_get_logits_ith(context, row);
        return static_cast<llama_token>(std::max_element(logits, logits + vocabulary) - logits);
    }

    // Every prompt whole, and its first token, in batches as large as the context takes.
    void prefill(std::vector<Sequence> & sequences) {
        std::vector<size_t> ending; // sequences whose last prompt token is in the batch, and at which row
        std::vector<int32_t> rows;
        batch.clear();
        const auto flush = [&] {
            forward();
            for (size_t i = 0; i < ending.size(); ++i) {
                sequences[ending[i]].emit(likeliest(rows[i]));
            }
            ending.clear();
            rows.clear();
            batch.clear();
        };
        for (size_t s = 0; s < sequences.size(); ++s) {
            const auto & prompt = sequences[s].cached;
            for (size_t i = 0; i < prompt.size(); ++i) {
                const bool is_last = i + 1 == prompt.size();
                const int32_t row = batch.add(prompt[i], i, s, is_last);
                if (is_last) {
                    ending.push_back(s);
                    rows.push_back(row);
                }
                if (batch.size() == static_cast<int32_t>(llama_n_batch(context))) {
                    flush();
                }
            }
        }
        if (batch.size() > 0) {
            flush();
        }
        for (size_t s = 0; speculation && s < sequences.size(); ++s) {
            common_speculative_begin(speculation.get(), s, sequences[s].cached);
        }
    }

    void draft(std::vector<Sequence> & sequences, size_t max_tokens) {
        for (size_t s = 0; s < sequences.size(); ++s) {
            auto & sequence = sequences[s];
            const int32_t most = static_cast<int32_t>(max_tokens - std::min(max_tokens, sequence.output.size() + 1));
            sequence.draft.clear();
            auto & wanted = common_speculative_get_draft_params(speculation.get(), s);
            wanted.drafting = most > 0;
            wanted.n_max = most;
            wanted.pos0 = sequence.cached.size();
            wanted.id_last = sequence.last;
            wanted.prompt = &sequence.cached;
            wanted.result = &sequence.draft;
        }
        common_speculative_draft(speculation.get());
        for (size_t s = 0; s < sequences.size(); ++s) {
            auto & drafted = sequences[s].draft;
            const size_t most = max_tokens - std::min(max_tokens, sequences[s].output.size() + 1);
            drafted.resize(std::min(drafted.size(), most));
            drop_after(draft_context, s, sequences[s].cached.size());
        }
    }

    static void drop_after(llama_context * owner, size_t sequence, size_t length) {
        if (owner != nullptr) {
            llama_memory_seq_rm(llama_get_memory(owner), sequence, length, -1);
        }
    }

    // One verification round over the unfinished sequences; false when there are none.
    bool step(std::vector<Sequence> & sequences, size_t max_tokens) {
        if (speculation) {
            draft(sequences, max_tokens);
        }
        batch.clear();
        std::vector<int32_t> starts(sequences.size(), -1);
        for (size_t s = 0; s < sequences.size(); ++s) {
            auto & sequence = sequences[s];
            if (sequence.output.size() >= max_tokens) {
                continue;
            }
            llama_pos position = sequence.cached.size();
            starts[s] = batch.add(sequence.last, position++, s, true);
            for (const llama_token token : sequence.draft) {
                batch.add(token, position++, s, true);
            }
        }
        if (batch.size() == 0) {
            return false;
        }
        forward();
        for (size_t s = 0; s < sequences.size(); ++s) {
            if (starts[s] >= 0) {
                judge(sequences[s], s, starts[s]);
            }
        }
        return true;
    }

    // Takes the drafts that the model would have said itself, and its own next token.
    void judge(Sequence & sequence, size_t s, int32_t row) {
        size_t accepted = 0;
        while (true) {
            sequence.cached.push_back(sequence.last);
            sequence.emit(likeliest(row + static_cast<int32_t>(accepted)));
            if (accepted == sequence.draft.size() || sequence.draft[accepted] != sequence.last) {
                break;
            }
            ++accepted;
        }
        if (speculation) {
            common_speculative_accept(speculation.get(), s, accepted);
            drop_after(context, s, sequence.cached.size());
            drop_after(draft_context, s, sequence.cached.size());
        }
    }
};

int main(int argc, char ** argv) {
    FILE * answers = fdopen(dup(STDOUT_FILENO), "w"); // for answers alone: what the library prints goes to stderr
    dup2(STDERR_FILENO, STDOUT_FILENO);
    common_params params;
    common_init();
    if (!common_params_parse(argc, argv, params, LLAMA_EXAMPLE_SERVER)) {
        return 2;
    }
    try {
        llama_backend_init();
        Runner runner(params);
        const auto say = [&](const json & message) {
            fprintf(answers, "%s\n", message.dump().c_str());
            fflush(answers);
        };
        say({{"version", std::string("llama.cpp ") + llama_version() + " (" + llama_commit() + ")"}});
        for (std::string line; std::getline(std::cin, line);) {
            say(runner.answer(json::parse(line)));
        }
    } catch (const std::exception & error) {
        fprintf(stderr, "llama-runner: %s\n", error.what());
        return 1;
    }
    return 0;
}
