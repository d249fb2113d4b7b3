"""Faults in the checkpoints."""

from tests.faults import fault

FAULTS = [
    fault(
        "kept NaNs lose their bits",
        "checkpoints/writing.py",
        "flat_blocks(weight.view(INTEGERS[weight.itemsize]), mask)",
        "flat_blocks(weight, mask)",
        "tests/checkpoints/test_writing.py::test_the_copy_is_the_masks_and_no_other_byte",
    ),
    fault(
        "the copy ends with the last weight",
        "checkpoints/writing.py",
        "        _copy(source, file, shard.num_bytes - source.tell(), advance)\n",
        "",
        "tests/checkpoints/test_writing.py::test_the_copy_is_the_masks_and_no_other_byte",
    ),
    fault(
        "the copy has a mode of its own",
        "checkpoints/writing.py",
        "    shutil.copymode(shard.path, target)\n",
        "",
        "tests/checkpoints/test_writing.py::test_the_mode_of_the_file_is_kept",
    ),
    fault(
        "the files beside the shards are left out",
        "checkpoints/writing.py",
        "            _copy_others(checkpoint, fresh)\n",
        "            fresh.mkdir()\n",
        "tests/checkpoints/test_writing.py::test_a_folder_is_copied_with_all_that_is_in_it",
    ),
    fault(
        "the old folder is not put back",
        "checkpoints/writing.py",
        "            replaced.rename(out)\n",
        "            pass\n",
        "tests/checkpoints/test_writing.py::test_a_rename_that_fails_puts_the_old_folder_back",
    ),
    fault(
        "a path that has come to exist is replaced",
        "checkpoints/writing.py",
        "if not force and os.path.lexists(out):",
        "if force and not os.path.lexists(out):",
        "tests/checkpoints/test_writing.py::test_what_comes_into_being_meanwhile_is_not_replaced",
    ),
    fault(
        "the flat index of a global threshold is that of the first weight",
        "checkpoints/planning.py",
        "threshold.flat_index - num_before)",
        "threshold.flat_index)",
        "tests/checkpoints/test_writing.py::test_the_threshold_may_be_a_tie_in_a_later_weight",
    ),
    fault(
        "an index may name files of other folders",
        "checkpoints/reading.py",
        "if not isinstance(name, str) or Path(name).name != name:",
        "if not isinstance(name, str):",
        "tests/checkpoints/test_reading.py::test_index",
    ),
    fault(
        "an index that names no file is accepted",
        "checkpoints/reading.py",
        "    if not names:\n",
        "    if names is None:\n",
        "tests/checkpoints/test_reading.py::test_an_index_of_nothing",
    ),
    fault(
        "zeros of a masked pair are those of its weight",
        "checkpoints/density.py",
        "kept &= mask != 0",
        "kept |= mask == 0",
        "tests/checkpoints/test_density.py::test_report_of_a_pruned_module",
    ),
    fault(
        "the norm of a weight is that of its largest block",
        "checkpoints/scoring.py",
        "norm = math.hypot(*norms)",
        "norm = max(norms, default=0.0)",
        "tests/checkpoints/test_writing.py::test_the_norm_is_that_of_all_blocks",
    ),
    fault(
        "an FP4 byte is one entry",
        "checkpoints/density.py",
        "for half in (0x07, 0x70)",
        "for half in (0x77,)",
        "tests/checkpoints/test_density.py::test_the_two_entries_of_a_byte_are_counted",
    ),
    fault(
        "the zeros of the copy are those of the masks",
        "checkpoints/planning.py",
        "count_zeros(weight, mask)",
        "count_zeros(mask)",
        "tests/checkpoints/test_planning.py::test_the_density_is_that_of_the_copy",
    ),
    fault(
        "codes are recognised by their names alone",
        "checkpoints/choosing.py",
        "        if tensor.dtype in NARROW_DTYPES and tensor.dim() >= 2 and not _is_scale(name):\n"
        "            found[name] = NARROW_DTYPES[tensor.dtype]\n"
        "        elif (pair",
        "        if (pair",
        "tests/checkpoints/test_choosing.py::test_a_quantized_weight_is_refused_by_name",
    ),
    fault(
        "the buffers of a model are ranked",
        "checkpoints/choosing.py",
        "if _parts(name) & CONSTANTS else None",
        "if not _parts(name) else None",
        "tests/checkpoints/test_choosing.py::test_buffers_of_constants_are_no_weights",
    ),
    fault(
        "scales are ranked where their codes are left out",
        "checkpoints/choosing.py",
        "        elif name in scales:\n            reasons[name] = SCALE\n",
        "",
        "tests/checkpoints/test_choosing.py::"
        "test_scales_are_not_ranked_where_the_codes_are_left_out",
    ),
    fault(
        "devices are copied",
        "checkpoints/writing.py",
        "        elif not path.is_file():\n",
        "        elif path.is_fifo() or not os.path.exists(path):\n",
        "tests/checkpoints/test_writing.py::"
        "test_what_cannot_be_copied_is_refused_before_anything_is_written",
    ),
    fault(
        "a loop is a link to a folder above it",
        "checkpoints/writing.py",
        "_require_copyable(path, [*above, target])",
        "_require_copyable(path, [target])",
        "tests/checkpoints/test_writing.py::test_links_that_lead_to_each_other_are_a_loop",
    ),
    fault(
        "an index may be a device",
        "checkpoints/reading.py",
        "    require_file(path)\n    try:\n        file_of",
        "    try:\n        file_of",
        "tests/checkpoints/test_reading.py::test_an_index_that_is_a_device_is_not_read",
    ),
    fault(
        "old files are mapped",
        "checkpoints/states.py",
        "mmap=is_zip)",
        "mmap=True)",
        "tests/checkpoints/test_states.py::test_a_state_dict_is_found",
    ),
    fault(
        "the first of several state dicts is read",
        "checkpoints/states.py",
        "        if len(states) > 1:\n",
        "        states = dict(list(states.items())[:1])\n        if len(states) > 1:\n",
        "tests/checkpoints/test_states.py::test_several_state_dicts_are_named",
    ),
    fault(
        "a full standard output is a traceback",
        "cli/printing.py",
        '        error.add_note(f"the result cannot be printed{done}")\n        raise\n',
        "        raise RuntimeError(done) from error\n",
        "tests/cli/test_printing.py::test_a_full_standard_output_is_one_line",
    ),
    fault(
        "an error after the rename says that nothing has changed",
        "checkpoints/writing.py",
        "    _sync(out.parent)\n\n\ndef _rename(",
        "    try:\n"
        "        _sync(out.parent)\n"
        "    except OSError as error:\n"
        '        error.add_note(f"{out} has not changed")\n'
        "        raise\n\n\ndef _rename(",
        "tests/checkpoints/test_writing.py::"
        "test_an_error_after_the_rename_does_not_say_that_nothing_changed",
    ),
    fault(
        "all blocks get the arguments of the first",
        "checkpoints/calibrating.py",
        "        (is_keyword, args, kwargs), *after = x.others\n",
        "        (is_keyword, args, kwargs), after = x.others[0], x.others\n",
        "tests/checkpoints/test_calibrating.py::test_the_functions_in_turn_are_the_network",
        "tests/checkpoints/test_language.py::"
        "test_the_masks_are_those_of_the_functions_called_by_hand[gemma3-wanda]",
    ),
    fault(
        "positional arguments of a block are lost",
        "checkpoints/calibrating.py",
        "Arguments(not args, args[1:], others)",
        "Arguments(not args, (), others)",
        "tests/checkpoints/test_calibrating.py::test_the_functions_in_turn_are_the_network",
    ),
    fault(
        "the hooks of the blocks stay",
        "checkpoints/calibrating.py",
        "            handle.remove()\n",
        "            del handle\n",
        "tests/checkpoints/test_calibrating.py::test_no_hook_is_left",
        "tests/checkpoints/test_calibrating.py::"
        "test_networks_that_do_not_call_their_blocks_in_turn",
    ),
    fault(
        "the experts of a block are taken for the blocks",
        "checkpoints/calibrating.py",
        "    return max(outer.items(), ",
        "    return max(lists.items(), ",
        "tests/checkpoints/test_calibrating.py::test_the_blocks_are_the_longest_list_of_one_class",
    ),
    fault(
        "the rows of a Conv1D are taken for its outputs",
        "checkpoints/language.py",
        "    return 0 if isinstance(layer, Conv1D) else None",
        "    return 1 if isinstance(layer, Conv1D) else None",
        "tests/checkpoints/test_language.py::test_wanda_prunes_as_much_of_each_output",
    ),
    fault(
        "a weight is written over another one of its name",
        "checkpoints/language.py",
        "rtol=0, atol=0, equal_nan=True",
        "rtol=9, atol=9, equal_nan=True",
        "tests/checkpoints/test_language.py::"
        "test_a_weight_that_is_converted_when_it_is_loaded_is_refused",
    ),
    fault(
        "a block sees weights of more bits than are stored",
        "checkpoints/language.py",
        "            new[path] = rebuilt[path].to(dtype).to(params[path].dtype)\n",
        "            new[path] = rebuilt[path]\n",
        "tests/checkpoints/test_language.py::"
        "test_a_block_sees_the_rounded_weights_of_the_blocks_before_it",
    ),
    fault(
        "SparseGPT's weights are refitted in place of the weights before",
        "checkpoints/language.py",
        "            new = reconstruct.refit(params, masks, grams, dim=block.dim)\n",
        "            new = reconstruct.refit(new, masks, grams, dim=block.dim)\n",
        "tests/checkpoints/test_language.py::"
        "test_the_masks_are_those_of_the_functions_called_by_hand[llama-sparsegpt 2:4 refit]",
    ),
    fault(
        "a text that is too short is read",
        "checkpoints/language.py",
        "    if len(ids) < tokens:\n",
        "    if not len(ids):\n",
        "tests/checkpoints/test_language.py::test_texts_that_cannot_be_used",
    ),
    fault(
        "random values stand in for missing tensors",
        "checkpoints/language.py",
        '    if missing := sorted(found["missing_keys"]):\n',
        '    if missing := sorted(found["mismatched_keys"]):\n',
        "tests/checkpoints/test_language.py::test_folders_that_cannot_be_used",
    ),
    fault(
        "options that need a text have no effect without one",
        "cli/checkpoints.py",
        "    wanted += [option for option, value in given.items() if value]\n",
        "",
        "tests/cli/test_calibrated.py::test_options_that_need_a_text",
    ),
    fault(
        "warnings are not printed",
        "cli/printing.py",
        '        warnings.filterwarnings("always", category=UserWarning, module=r"gprune\\.")\n',
        "",
        "tests/cli/test_calibrated.py::test_too_few_tokens_are_a_warning_of_one_line",
    ),
]
